"""The table that `hdtrain evaluate` prints at the end, and the arms' predictions on disk."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hdtrain.evaluation.arms import ArmPredictions
from hdtrain.features.parts import Arrays
from hdtrain.formats.atomic import atomic_file
from hdtrain.formats.results import Metric, Results


def format_table(results: Results) -> str:
    """Arms first, then image sets; figures with their 95 % intervals."""
    width = max(len(name) for name in ["colour histogram", *results.arms, *results.image_sets])
    lines = [f"{'arm':<{width}}  {'accuracy':<22} {'macro F1':<22} gain over {results.baseline}"]
    for name, arm in results.arms.items():
        gain = arm.metrics.get("accuracy_gain")
        p = f" p = {arm.p_value:.3g}" if arm.p_value is not None else ""
        accuracy, f1 = _shown(arm.metrics["accuracy"]), _shown(arm.metrics["macro_f1"])
        lines.append(f"{name:<{width}}  {accuracy:<22} {f1:<22} {_shown(gain)}{p}".rstrip())
    colours = results.colour_histogram
    lines.append(
        f"{'colour histogram':<{width}}  {_shown(colours['accuracy']):<22} {_shown(colours['macro_f1'])}".rstrip()
    )
    columns = [
        _first(results, ("FD-", "FID"), "FD"),
        _first(results, ("KD-", "KID"), "KD"),
        "precision",
        "recall",
        "label_agreement",
        "memorised_share",
        "colour_ks",
    ]
    widths = [max(len(column), 8) for column in columns]
    lines.append(
        f"\n{'images':<{width}}  {'n':>6} " + " ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
    )
    for name, result in results.image_sets.items():
        cells = [f"{result.metrics[c].value:.4g}" if c in result.metrics else "–" for c in columns]
        row = " ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{name:<{width}}  {result.num_images:>6} {row}")
    return "\n".join(lines)


def _first(results: Results, prefixes: tuple[str, ...], otherwise: str) -> str:
    """The name of a figure, which says what its encoder was."""
    names = (key for found in results.image_sets.values() for key in found.metrics if key.startswith(prefixes))
    return next((name for name in names if not name.startswith("FIDinf")), otherwise)


def _shown(metric: Metric | None) -> str:
    if metric is None:
        return ""
    interval = f" [{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]" if metric.interval else ""
    return f"{metric.value:.3f}{interval}"


def write_predictions(folder: Path, predictions: Mapping[str, ArmPredictions], test: Arrays) -> None:
    """`NN-ARM.npz` an arm: `keys`, `labels`, `seeds` and `probabilities` float32 (seeds, n, classes)."""
    for number, (name, arm) in enumerate(predictions.items()):
        path = folder / f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.npz"
        with atomic_file(path) as stream:
            np.savez(
                stream,
                keys=test["keys"],
                labels=test["labels"],
                seeds=np.array(arm.seeds),
                probabilities=arm.probabilities.transpose(1, 0, 2),
            )
