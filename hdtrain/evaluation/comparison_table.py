"""The table that `hdtrain evaluate real=… fake=…` prints at the end."""

from hdtrain.formats.comparison import ComparedSet, Comparison
from hdtrain.formats.results import Metric

_SHOWN_CLASSES = 30


def format_comparison(comparison: Comparison) -> str:
    """The two sets, what they were seen with, the figures, those by class, and what was left out."""
    encoder = comparison.encoder
    own = "their own size" if encoder["image_resolution"] is None else f"{encoder['image_resolution']} px"
    lines = [
        f"real: {_described(comparison.real)}",
        f"fake: {_described(comparison.fake)}",
        f"encoder: {encoder['name']}, weights {str(encoder['weights'])[:12]}, {encoder['resolution']} px from images "
        f"of {own}; {encoder['resize']}; seed {comparison.protocol['seed']}",
    ]
    if judge := comparison.protocol.get("judge"):
        lines.append(f"judge: {judge['path']}, {judge['identity'][:12]}")
    lines.append("")
    width = max([len(name) for name in comparison.metrics] + [6])
    lines += [f"{name:<{width}}  {_figure(metric)}" for name, metric in comparison.metrics.items()]
    lines += _by_class(comparison)
    if comparison.left_out:
        lines += ["", *(f"left out: {text}" for text in comparison.left_out)]
    return "\n".join(lines)


def _described(side: ComparedSet) -> str:
    count = "an unknown number of" if side.num_images is None else f"{side.num_images:,}"
    kept = f", features of {side.num_kept:,} kept" if side.num_images and side.num_kept < side.num_images else ""
    rejected = f", {side.num_rejected:,} unusable left out" if side.num_rejected else ""
    return f"{count} images{kept}{rejected} ({side.path}, {side.identity[:12]})"


def _figure(metric: Metric) -> str:
    interval = f"  [{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]" if metric.interval else ""
    return f"{metric.value:<12.6g}{interval}  n {metric.n:,}; {metric.method}"


def _by_class(comparison: Comparison) -> list[str]:
    if not comparison.per_class:
        return []
    columns = list(dict.fromkeys(name for metrics in comparison.per_class.values() for name in metrics))
    width = max(len(name) for name in [*comparison.per_class, "class"])
    widths = [max(len(column), 9) for column in columns]
    lines = ["", f"{'class':<{width}} " + " ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for name, metrics in list(comparison.per_class.items())[:_SHOWN_CLASSES]:
        cells = [f"{metrics[c].value:.4g}" if c in metrics else "–" for c in columns]
        lines.append(f"{name:<{width}} " + " ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    if len(comparison.per_class) > _SHOWN_CLASSES:
        lines.append(f"… and {len(comparison.per_class) - _SHOWN_CLASSES} more classes in results.json")
    return lines
