"""Plots as inline SVG that refers to nothing outside itself; ink and grid take the page's colours, light or dark."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hdtrain.formats.results import Metric, Results
from hdtrain.reporting.comparisons import GAIN, augmentation_arms, synthetic_arms
from hdtrain.reporting.runs import Curves
from hdtrain.reporting.series import arms_by_series, ratio_of

INK, GRID = "#1f2328", "#d0d7de"
"""Stand-ins that `inline` replaces by `currentColor` and `var(--line)`."""
COLOURS = {"synthetic": "#2f7ebc", "real": "#7d8590", "augmentation": "#c27a1a"}
SERIES_COLOURS = ("#2f7ebc", "#8a63b8", "#1f9d63", "#c0504d", "#17899b", "#b0568f", "#84842a", "#5b6ee1")
SERIES_MARKERS = "osv^Dph*"
DASHED: Any = (0, (4, 3))
MAX_POINTS = 300
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "hdtrain",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def accuracy_plot(results: Results) -> Markup:
    """Accuracy of every arm, and its gain over the baseline: dots with 95 % whiskers."""
    names = [name for arms in arms_by_series(results).values() for name in arms]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.9 + 0.34 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _dots(left, results, names, "accuracy")
        _dots(right, results, names, GAIN)
        baseline = results.arms[results.baseline].metrics["accuracy"].value
        left.axvline(baseline, color=COLOURS["real"], linewidth=1, linestyle=DASHED)
        right.axvline(0, color=COLOURS["real"], linewidth=1, linestyle=DASHED)
        left.set_title("accuracy", loc="left")
        right.set_title(f"gain in accuracy over {results.baseline} (paired)", loc="left")
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
        return inline(figure, "accuracy")


def _dots(axes: Axes, results: Results, names: Sequence[str], key: str) -> None:
    synthetic, augmentation = synthetic_arms(results), augmentation_arms(results)
    for row, name in enumerate(names):
        metric: Metric | None = results.arms[name].metrics.get(key)
        if metric is None:
            continue
        kind = "synthetic" if name in synthetic else "augmentation" if name in augmentation else "real"
        if metric.interval:
            axes.plot(metric.interval, (row, row), color=COLOURS[kind], linewidth=2, solid_capstyle="round", alpha=0.55)
        axes.plot([metric.value], [row], "o", color=COLOURS[kind], markersize=6)


def ratio_plot(results: Results) -> Markup:
    """Accuracy against the ratio of synthetic to real images, one line a series; the baseline's interval is a band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        axes = figure.subplots()
        baseline = results.arms[results.baseline].metrics["accuracy"]
        if baseline.interval:
            axes.axhspan(*baseline.interval, color=COLOURS["real"], alpha=0.16, linewidth=0)
        axes.axhline(baseline.value, color=COLOURS["real"], linewidth=1.2, linestyle=DASHED, label=results.baseline)
        lines = {
            series: points
            for series, names in arms_by_series(results).items()
            if series and (points := sorted((ratio_of(results.arms[name]), name) for name in names))
        }
        ratios = sorted({ratio for points in lines.values() for ratio, _ in points})
        step = 0.012 * max(ratios)
        for i, (series, points) in enumerate(lines.items()):
            aside = step * (i - (len(lines) - 1) / 2)  # so that whiskers do not cover each other
            metrics = [results.arms[name].metrics["accuracy"] for _, name in points]
            places = [ratio + aside for ratio, _ in points]
            style: Any = {
                "color": SERIES_COLOURS[i % len(SERIES_COLOURS)],
                "marker": SERIES_MARKERS[i % len(SERIES_MARKERS)],
            }
            axes.plot(
                places, [metric.value for metric in metrics], linewidth=1.4, markersize=5.5, label=series, **style
            )
            _whiskers(axes, places, metrics, style["color"])
        for i, name in enumerate(augmentation_arms(results)):
            metric, place = results.arms[name].metrics["accuracy"], -step * (2 * i + 2)
            axes.plot([place], [metric.value], "D", color=COLOURS["augmentation"], markersize=7, label=name)
            _whiskers(axes, [place], [metric], COLOURS["augmentation"])
        axes.set_xticks([0, *ratios], [f"{ratio:g}" for ratio in [0, *ratios]])
        axes.set_xlabel("synthetic images a real one")
        axes.set_ylabel("accuracy")
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
        return inline(figure, "ratios")


def _whiskers(axes: Axes, places: Sequence[float], metrics: Sequence[Metric], colour: str) -> None:
    for place, metric in zip(places, metrics, strict=True):
        if metric.interval:
            axes.plot((place, place), metric.interval, color=colour, linewidth=1.6, alpha=0.5)


def is_curve(name: str) -> bool:
    """The scalars worth a panel: losses, learning rate and speed."""
    return name.startswith("loss/") or name in ("lr", "images_per_sec")


def curves_plot(curves: Curves, identity: str) -> Markup | None:
    """One stage's losses, lr and images_per_sec over steps in small multiples; None where it logged none of them."""
    panels = sorted(
        filter(is_curve, curves.scalars),
        key=lambda name: (("lr", "images_per_sec").index(name) + 1 if "/" not in name else 0, name),
    )
    if not panels:
        return None
    columns = 4
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.55 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, name in zip(grid, panels, strict=False):
            for segment in segments(curves.scalars[name]):
                steps, values = zip(*thin(segment), strict=True)
                axes.plot(
                    steps, values, color=COLOURS["synthetic"], linewidth=1.2, marker="." if len(steps) < 3 else ""
                )
            axes.set_title(name, loc="left")
            if not name.startswith("loss/"):
                axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        return inline(figure, identity)


def segments(points: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Cut where the step falls back: another seed began, or a stopped run went on from its checkpoint."""
    found: list[list[tuple[int, float]]] = []
    for point in points:
        if found and point[0] > found[-1][-1][0]:
            found[-1].append(point)
        else:
            found.append([point])
    return found


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `MAX_POINTS` points: means of equal runs of neighbours, each at its last step."""
    if len(points) <= MAX_POINTS:
        return list(points)
    stride = -(-len(points) // MAX_POINTS)
    parts = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def inline(figure: Figure, identity: str) -> Markup:
    """The figure as an `<svg>` element of the page: no prolog, no metadata, ids of its own, the page's colours."""
    svg = _svg(figure)
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)
    ids = set(re.findall(r' id="([^"]+)"', svg)) & set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{identity}-{m[1]}"' if m[1] in ids else "", svg)
    svg = re.sub(r"#([\w.-]+)", lambda m: f"#{identity}-{m[1]}" if m[1] in ids else m[0], svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    return Markup(svg.replace("<svg ", '<svg class="plot" ', 1))


def standalone(figure: Figure) -> str:
    """The figure as a whole SVG file on white; the same figure gives the same text."""
    figure.set_facecolor("white")
    return _svg(figure, facecolor="white")


def _svg(figure: Figure, **options: Any) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=nothing, **options)
    return buffer.getvalue()
