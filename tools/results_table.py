"""Print an evaluation's results as Markdown: `python tools/results_table.py RUNS/evaluation`.

Every figure comes from results.json and run.json; `docs/results.md` is made with it.
"""

import argparse
from pathlib import Path

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.results import ColourStatistic, Metric, Results
from hdtrain.formats.run_dir import RunDir

ARM_METRICS = (
    "accuracy", "macro_f1", "weighted_f1", "macro_sensitivity", "weighted_sensitivity", "specificity",
    "calibration_error", "accuracy_gain",
)  # fmt: skip
GAIN_OVER = "accuracy_gain_over_"
ALL_CLASSES = "all"


def cell(metric: Metric | None) -> str:
    """`.695 [.66, .73]`, or a dash."""
    if metric is None:
        return "–"
    text = f"{metric.value:.3f}"
    return text if metric.interval is None else f"{text} [{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def arms_table(results: Results) -> str:
    """One row an arm, the colour histogram last."""
    rows = [
        [name, arm.series or "–", str(arm.num_real), str(arm.num_synthetic), str(arm.steps)]
        + [cell(arm.metrics.get(metric)) for metric in ARM_METRICS]
        + ["–" if arm.p_value is None else f"{arm.p_value:.3f}"]
        for name, arm in results.arms.items()
    ]
    colours = [cell(results.colour_histogram.get(metric)) for metric in ARM_METRICS]
    num_real = str(next(iter(results.arms.values())).num_real)
    rows.append(["colour histogram", "–", num_real, "0", "–", *colours, "–"])
    return table(["arm", "series", "real", "synthetic", "steps", *ARM_METRICS, "p"], rows)


def pairs_table(results: Results) -> str:
    """Paired differences in accuracy from other arms than the baseline."""
    rows = [
        [name, other, cell(arm.metrics.get(GAIN_OVER + other)), f"{p:.3f}"]
        for name, arm in results.arms.items()
        for other, p in arm.p_values.items()
    ]
    return table(["arm", "minus", "accuracy", "p"], rows)


def class_table(results: Results, metric: str) -> str:
    """One metric of every arm by class."""
    rows = [
        [name] + [cell(arm.per_class.get(label, {}).get(metric)) for label in results.classes]
        for name, arm in results.arms.items()
    ]
    return table([f"{metric} by class", *results.classes], rows)


def sets_table(results: Results) -> str:
    """One row a set of images."""
    names = list(dict.fromkeys(name for images in results.image_sets.values() for name in images.metrics))
    rows = [
        [name, str(images.num_images), str(images.num_reference)] + [cell(images.metrics.get(m)) for m in names]
        for name, images in results.image_sets.items()
    ]
    return table(["images", "n", "reference n", *names], rows)


def set_classes_table(results: Results, name: str) -> str:
    """One row a class of a set of images."""
    per_class = results.image_sets[name].per_class
    names = list(dict.fromkeys(key for metrics in per_class.values() for key in metrics))
    rows = [[label] + [cell(metrics.get(key)) for key in names] for label, metrics in per_class.items()]
    return table([f"{name} by class", *names], rows)


def difference(statistic: ColourStatistic | None) -> str:
    """`+0.34 / 0.51`, or a dash."""
    if statistic is None or statistic.effect_size is None or statistic.ks is None:
        return "–"
    return f"{statistic.effect_size:+.2f} / {statistic.ks:.2f}"


def colours_table(results: Results) -> str:
    """Cohen's d and KS distance from the real training images, all classes together."""
    found = {name: results.colours.get(name, {}).get(ALL_CLASSES, {}) for name in results.image_sets}
    names = list(dict.fromkeys(key for statistics in found.values() for key in statistics))
    rows = [[name] + [difference(statistics.get(key)) for key in names] for name, statistics in found.items()]
    return table(["d / KS", *names], rows)


def seconds_of(directory: Path) -> float:
    """Sum over the attempts that ended."""
    attempts = read_run_json(RunDir(directory)).get("attempts", [])
    return float(sum(attempt["ended"] - attempt["started"] for attempt in attempts if "ended" in attempt))


def main() -> None:
    """Print arms, image sets and stage times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path, help="run directory of an evaluate stage")
    parser.add_argument("--by-class", action="store_true", help="every table by class too")
    args = parser.parse_args()
    directory: Path = args.evaluation
    results = Results.read(RunDir(directory).results)
    manifest, record = read_manifest(directory), read_run_json(RunDir(directory))
    print(f"Commit {manifest.commit[:12]}, {record['cpus']} CPU cores, versions {record['versions']}.\n")
    tables = [arms_table(results), pairs_table(results)]
    tables += [sets_table(results), colours_table(results)]
    if args.by_class:
        tables += [class_table(results, metric) for metric in ("sensitivity", "specificity", "f1")]
        tables += [set_classes_table(results, name) for name in results.image_sets]
    runs = sorted(path.parent for path in directory.parent.glob("*/manifest.json"))
    tables.append(table(["stage", "seconds"], [[run.name, f"{seconds_of(run):.0f}"] for run in runs]))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
