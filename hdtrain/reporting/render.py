"""The page: `report.html.j2` and `report.css` filled with what `data` collected, as one self-contained file."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hdtrain.formats.results import YARDSTICK, ArmResult, ImageSetResult, Metric, Results
from hdtrain.reporting import formatting, trust
from hdtrain.reporting.comparisons import ALPHA, augmentation_arms
from hdtrain.reporting.data import ReportData
from hdtrain.reporting.graph import Box, draw
from hdtrain.reporting.images import DRAW_SEED, failure_gallery, gallery, gallery_of_arms, nearest_pairs
from hdtrain.reporting.plots import accuracy_plot, curves_plot, ratio_plot
from hdtrain.reporting.protocols import protocol_rows, protocol_sentence
from hdtrain.reporting.published import PUBLISHED, SOURCE
from hdtrain.reporting.runs import Run
from hdtrain.reporting.series import arms_by_series, has_series, ratio_of
from hdtrain.reporting.sweep import sampled_scales, sweep_plot
from hdtrain.reporting.trust_plots import ALL, colour_plot, distance_plot
from hdtrain.reporting.verdict import decide

OTHER_ARM_METRICS = {
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "macro_sensitivity": "Macro sensitivity",
    "specificity": "Specificity",
}
IMAGE_METRICS = (
    "FD-",
    "FID",
    "FDinf",
    "FDpca",
    "KD-",
    "KID",
    "precision",
    "recall",
    "density",
    "coverage",
    "label_agreement",
    "memorised_share",
    "colour_ks",
)
"""Order of the columns, by prefix; other metrics follow in the file's order."""
MEMORISED_BY_SPACE = {"memorised_share_features": "in features", "memorised_share_pixels": "in pixels"}
"""Columns of the section on nearest images, not of the table of sets."""
GROUPS = {
    "data": ("shard", "verify", "encode", "embed"),
    "training": ("train-vae", "train-ldm", "train-prior", "train-classifier", "adapt-decoder"),
    "synthesis": ("sweep-guidance", "sweep-solvers", "sample", "select"),
    "answer": ("evaluate", "evaluate-fidelity"),
}
GROUP_PREFIX = "stage-group-"


def render(data: ReportData) -> str:
    """The whole HTML document."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(formatting, name)
        for name in ("figure", "interval", "percent", "signed", "p_value", "duration", "count", "when")
    }
    environment.filters["label"] = lambda name: name.replace("_", " ")
    environment.globals["trust_rules"] = trust
    environment.globals["ratio_of"] = ratio_of
    results, protocols = data.results, protocol_rows(data.runs)
    return environment.get_template("report.html.j2").render(
        data=data,
        results=results,
        verdict=decide(results),
        alpha=ALPHA,
        other_arm_metrics=OTHER_ARM_METRICS,
        augmentation=augmentation_arms(results),
        arms_by_series=arms_by_series(results),
        accuracy_plot=accuracy_plot(results),
        ratio_plot=ratio_plot(results) if has_series(results) else None,
        protocols=protocols,
        protocol_sentence=protocol_sentence(protocols),
        sweep_plot=sweep_plot(data.sweep) if data.sweep else None,
        sampled_scales=sampled_scales(data.runs),
        methods=_methods(results),
        published=[[row for row in PUBLISHED if row.ablation is ablation] for ablation in (False, True)],
        published_source=SOURCE,
        image_columns=image_columns(results),
        yardstick=YARDSTICK,
        agreement_threshold=trust.agreement_threshold(len(results.classes)),
        gallery=gallery(data.selection, results.classes, data.examples_per_class)
        if data.selection
        else gallery_of_arms(data.evaluation, results.classes, data.examples_per_class),
        draw_seed=DRAW_SEED,
        curves=_curves(data),
        confusion={name: shares(arm.confusion) for name, arm in results.arms.items()},
        class_metrics=_class_metrics(results.arms),
        nearest=nearest_pairs(data.evaluation, results.nearest),
        distance_plot=distance_plot(results),
        memorised_columns=_memorised_columns(results),
        colour_plot=colour_plot(results),
        colour_groups=[ALL, *results.classes],
        colour_statistics=_colour_statistics(results),
        failures=failure_gallery(data.evaluation, results.failures),
        graph=_graph(data.runs),
        groups=list(GROUPS),
        group_prefix=GROUP_PREFIX,
        versions=_versions(data.runs),
    )


def shares(confusion: list[list[int]]) -> list[list[tuple[int, float]]]:
    """(count, share of the row) of every cell; an empty row has shares of 0."""
    return [[(cell, cell / max(1, sum(row))) for cell in row] for row in confusion]


def image_columns(results: Results) -> list[str]:
    """Metrics of all image sets in the table's order."""
    found = dict.fromkeys(
        key
        for image_set in results.image_sets.values()
        for key in _metrics_of(image_set)
        if key not in MEMORISED_BY_SPACE
    )
    rank = {
        key: next((i for i, p in enumerate(IMAGE_METRICS) if key.startswith(p)), len(IMAGE_METRICS)) for key in found
    }
    return sorted(found, key=rank.__getitem__)


def _memorised_columns(results: Results) -> dict[str, str]:
    """Metric to title, where any set was measured."""
    columns = {"memorised_share": "flagged in either", **MEMORISED_BY_SPACE}
    return columns if any("memorised_share" in found.metrics for found in results.image_sets.values()) else {}


def _colour_statistics(results: Results) -> list[str]:
    """Names of the statistics, in the file's order."""
    return list(dict.fromkeys(key for groups in results.colours.values() for found in groups.values() for key in found))


def _metrics_of(image_set: ImageSetResult) -> list[str]:
    return [*image_set.metrics, *(key for metrics in image_set.per_class.values() for key in metrics)]


def _class_metrics(arms: dict[str, ArmResult]) -> list[str]:
    """Per-class metrics that the arms hold."""
    return list(dict.fromkeys(key for arm in arms.values() for metrics in arm.per_class.values() for key in metrics))


def _methods(results: Results) -> dict[str, list[str]]:
    """How each figure came about, by metric: the distinct `method` texts."""
    found: dict[str, dict[str, None]] = {}
    groups: list[dict[str, Metric]] = [arm.metrics for arm in results.arms.values()]
    groups += [results.colour_histogram, *(image_set.metrics for image_set in results.image_sets.values())]
    for metrics in groups:
        for key, metric in metrics.items():
            if metric.method:
                found.setdefault(key, {})[metric.method] = None
    return {key: list(methods) for key, methods in found.items()}


def _curves(data: ReportData) -> list[tuple[Run, Markup | None]]:
    """Runs that wrote metrics, each with its plot."""
    return [
        (run, curves_plot(run.curves, f"curves{i}"))
        for i, run in enumerate(data.runs.values())
        if run.curves is not None
    ]


def _graph(runs: dict[str, Run]) -> Markup:
    group = {stage: name for name, stages in GROUPS.items() for stage in stages}
    boxes = {
        name: Box(name, run.stage, formatting.duration(run.seconds), GROUP_PREFIX + group.get(run.stage, "answer"))
        for name, run in runs.items()
    }
    return draw(boxes, {name: list(dict.fromkeys(run.parents.values())) for name, run in runs.items()})


def _versions(runs: dict[str, Run]) -> dict[str, dict[str, list[str]]]:
    """Package to version to the runs that used it."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, run in runs.items():
        versions: dict[str, Any] = run.record.get("versions", {})
        for package, version in versions.items():
            found.setdefault(package, {}).setdefault(str(version), []).append(name)
    return found
