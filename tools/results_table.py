"""Print an evaluation's results as Markdown: `python tools/results_table.py RUNS/evaluation`.

Every figure comes from results.json and run.json; `docs/results.md` is made with it.
"""

import argparse
from pathlib import Path

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.results import Metric, read_results
from hdtrain.formats.run_dir import RunDir

ARM_METRICS = ("accuracy", "macro_f1", "weighted_f1", "macro_sensitivity", "specificity", "accuracy_gain")


def cell(metric: Metric | None) -> str:
    """`.695 [.66, .73]`, or a dash."""
    if metric is None:
        return "–"
    text = f"{metric.value:.3f}"
    return text if metric.interval is None else f"{text} [{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def seconds_of(directory: Path) -> float:
    """Sum over the attempts that ended."""
    attempts = read_run_json(RunDir(directory)).get("attempts", [])
    return float(sum(attempt["ended"] - attempt["started"] for attempt in attempts if "ended" in attempt))


def main() -> None:
    """Print arms, image sets and stage times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path, help="run directory of an evaluate stage")
    directory = parser.parse_args().evaluation
    results = read_results(RunDir(directory).results)
    manifest, record = read_manifest(directory), read_run_json(RunDir(directory))
    print(f"Commit {manifest.commit[:12]}, {record['cpus']} CPU cores, versions {record['versions']}.\n")
    rows = [
        [name, str(arm.num_real), str(arm.num_synthetic), str(arm.steps)]
        + [cell(arm.metrics.get(metric)) for metric in ARM_METRICS]
        + ["–" if arm.p_value is None else f"{arm.p_value:.3f}"]
        for name, arm in results.arms.items()
    ]
    colours = [cell(results.colour_histogram.get(metric)) for metric in ARM_METRICS]
    rows.append(["colour histogram", str(next(iter(results.arms.values())).num_real), "0", "–", *colours, "–"])
    print(table(["arm", "real", "synthetic", "steps", *ARM_METRICS, "p"], rows) + "\n")
    names = list(dict.fromkeys(name for images in results.image_sets.values() for name in images.metrics))
    rows = [
        [name, str(images.num_images), str(images.num_reference)] + [cell(images.metrics.get(m)) for m in names]
        for name, images in results.image_sets.items()
    ]
    print(table(["images", "n", "reference n", *names], rows) + "\n")
    runs = sorted(path.parent for path in directory.parent.glob("*/manifest.json"))
    print(table(["stage", "seconds"], [[run.name, f"{seconds_of(run):.0f}"] for run in runs]))


if __name__ == "__main__":
    main()
