"""Images of every solver against the real ones and against the reference's, and the rule that chooses a solver."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hdtrain.config.solver_sweep import SweepSolversConfig
from hdtrain.data.exactly_once import decode_sample
from hdtrain.evaluation.moments import Moments, moments_of
from hdtrain.evaluation.paired_frechet import Distances
from hdtrain.evaluation.set_statistics import enough_for_frechet, made_with
from hdtrain.features.encoders import Encoder
from hdtrain.features.parts import Arrays, Parts, shard_units
from hdtrain.features.store import FeatureSet, FeatureStore, embed_dataset, shard_piece
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.results import Metric
from hdtrain.formats.shards import ShardReader
from hdtrain.formats.solver_sweep import SolverResult, SolverSweepResults
from hdtrain.progress import Progress

Dataset = tuple[Path, Manifest]
TITLE = "sweep-solvers"


@dataclass(frozen=True)
class Measured:
    """What the figures of one solver are made of."""

    features: FeatureSet
    pixels: Arrays
    """`difference`: of every image from the reference's, mean over its pixels and channels, 0..255."""
    evaluations: dict[str, float]
    """`denoiser` and `classifier`: an image."""


def measure(
    config: SweepSolversConfig,
    sets: Mapping[str, Dataset],
    encoder: Encoder,
    store: FeatureStore,
    parts: Parts,
    evaluations: Mapping[str, dict[str, float]],
) -> dict[str, Measured]:
    """Features and pixel differences of every solver's images.

    Args:
        config: of the stage.
        sets: data set to where it is published, the reference first.
        encoder: of the Fréchet distance.
        store: of features.
        parts: of pixel differences.
        evaluations: of the networks an image, by data set.
    """
    reference, measured = config.reference.name, {}
    for name, dataset in sets.items():
        title = f"{TITLE}: features of {name}"
        features = embed_dataset(title, dataset, encoder, store, config.batch_size, config.resolution)
        compare = partial(pixel_differences, folder=sets[reference][0] / "shards")
        units = shard_units(f"pixels-{name}-from-{reference}", dataset, compare)
        parts.compute(f"{TITLE}: pixels of {name}", units)
        measured[name] = Measured(features, parts.load(units), evaluations[name])
    return measured


def real_moments(config: SweepSolversConfig, sets: Sequence[Dataset], encoder: Encoder, store: FeatureStore) -> Moments:
    """Sums over the features of all real images; the same bits in every process."""
    pieces = [shard_piece(path, entry) for path, manifest in sets for entry in manifest.shards]
    title = f"{TITLE}: features of real images"
    return moments_of(store.embed(title, pieces, encoder, config.batch_size, config.resolution), store)


def pixel_differences(reader: ShardReader, folder: Path) -> Arrays:
    """Mean absolute differences of a shard's images from those of the shard of that name in `folder`, 0..255."""
    other = ShardReader(folder / reader.path.name, retry_sec=PATIENCE_SEC)
    found = [
        np.abs(decode_sample(reader, i).astype(np.int16) - decode_sample(other, i)).mean()
        for i in range(reader.sidecar.samples)
    ]
    return {"difference": np.array(found, np.float64)}


def group_moments(features: FeatureSet, num_classes: int, groups: int) -> list[Moments]:
    """Sums over `groups` groups of images: the j-th of every class is in group j modulo `groups`."""
    group_of = np.arange(len(features)) // num_classes % groups
    return [Moments.of(features.rows(np.flatnonzero(group_of == group))) for group in range(groups)]


def score_solvers(
    config: SweepSolversConfig,
    measured: Mapping[str, Measured],
    real: Moments,
    name: str,
    num_classes: int,
    groups: int,
) -> list[SolverResult]:
    """Every figure, the reference's first.

    Args:
        config: of the stage.
        measured: by data set, the reference first; row i is image i of each.
        real: sums over the real images.
        name: of the Fréchet distance.
        num_classes: 1 where there are no classes.
        groups: of the jackknife.
    """
    distances = {}
    total = len(measured) * (groups + 1)
    with Progress(f"{TITLE}: {name}", total, "distances") as progress:
        for solver, of in measured.items():
            sums = group_moments(of.features, num_classes, groups)
            distances[solver] = Distances.of(sums, real, lambda: progress.update(1))
    reference = distances[config.reference.name]
    limit = config.tolerance * reference.whole
    against = f"fp64 moments with N − 1, against {real.n:,} real"
    paired = f"of the same noise; 95 % by a jackknife that leaves out each of {groups} groups of images"
    results = []
    for solver, of in measured.items():
        n, (value, interval) = len(of.features), distances[solver].difference(reference)
        difference = Metric(
            value=value, interval=interval, n=n, method=f"{name} less {config.reference.name}'s, {paired}"
        )
        results.append(
            SolverResult(
                name=solver,
                solver=config.by_name[solver].model_dump(mode="json"),
                num_images=n,
                frechet=Metric(value=distances[solver].whole, n=n, method=against),
                difference=difference,
                pixel_difference=Metric(
                    value=float(of.pixels["difference"].mean()),
                    n=n,
                    method=f"mean absolute difference from {config.reference.name}'s images, 0..255",
                ),
                denoiser_evaluations=of.evaluations["denoiser"],
                classifier_evaluations=of.evaluations["classifier"],
                passed=max(map(abs, interval)) <= limit,
            )
        )
    return results


def choose(solvers: Sequence[SolverResult], metric: str, tolerance: float) -> tuple[str, str]:
    """The solver by rule, and the reason in words.

    Of the solvers that pass, the reference among them, the one with the fewest evaluations of the denoiser; of several
    with the same the one with the fewest of ϕ, then the one nearest to the reference's distance.

    Args:
        solvers: the reference first.
        metric: name of the distance.
        tolerance: of the rule.
    """
    reference, *others = solvers
    chosen = min(
        (solver for solver in solvers if solver.passed),
        key=lambda one: (one.denoiser_evaluations, one.classifier_evaluations, abs(one.difference.value)),
    )
    limit = tolerance * reference.frechet.value
    within = f"{100 * tolerance:g} % ({limit:.4g}) of {reference.name}'s ({reference.frechet.value:.4g})"
    if chosen is not reference:
        passed = ", ".join(solver.name for solver in others if solver.passed)
        return chosen.name, (
            f"{chosen.name} has the fewest evaluations of the denoiser an image ({chosen.denoiser_evaluations:g}, "
            f"{reference.name} has {reference.denoiser_evaluations:g}) of the solvers whose {metric} is within "
            f"{within}: {passed}"
        )
    if any(solver.passed for solver in others):
        return chosen.name, f"No solver whose {metric} is within {within} has fewer evaluations of the denoiser"
    nearest = min(others, key=lambda one: one.upper)
    reason = (
        f"No solver's {metric} is sure to be within {within}; the nearest is {nearest.name}, which may be off by "
        f"{nearest.upper:.4g}"
    )
    unsure = [solver.name for solver in others if abs(solver.difference.value) <= limit]
    return chosen.name, reason + (f". More images may settle it for {', '.join(unsure)}" if unsure else "")


def sweep_results(
    config: SweepSolversConfig,
    solvers: list[SolverResult],
    encoder: Encoder,
    real: Mapping[Path, Manifest],
    classes: list[str] | None,
    protocol: Mapping[str, object],
) -> SolverSweepResults:
    """The whole file: figures and the choice, the user's or the rule's.

    Args:
        config: of the stage.
        solvers: their figures, the reference's first.
        encoder: of the Fréchet distance.
        real: the real images' manifests.
        classes: of the generated images.
        protocol: how images were guided and divided.
    """
    metric = encoder.metric_name("FD")
    by_rule, reason = choose(solvers, metric, config.tolerance)
    if config.choice is not None:
        agrees = config.choice == by_rule
        reason = f"The rule {'says the same' if agrees else 'would have chosen another'}: {reason}"
    warnings = []
    fewest = min(solvers[0].num_images, sum(manifest.num_samples for manifest in real.values()))
    if fewest < enough_for_frechet(encoder.dim):
        warnings.append(
            f"{fewest:,} images are fewer than twice the encoder's {encoder.dim:,} dimensions, so every {metric} is "
            f"mostly bias, and the limit, {100 * config.tolerance:g} % of it, is wider than with many images: "
            "what passes here need not pass there. Take more images, or a smaller tolerance"
        )
    if encoder.weights_sha256 == "random":
        warnings.append("the encoder has random weights: its figures are good for tests alone")
    return SolverSweepResults(
        metric=metric,
        solvers=solvers,
        choice=config.choice or by_rule,
        chosen_by="rule" if config.choice is None else "user",
        rule_choice=by_rule,
        reason=reason,
        tolerance=config.tolerance,
        limit=config.tolerance * solvers[0].frechet.value,
        classes=classes or [],
        encoder=made_with(encoder, config.resolution),
        real={f"{i} {path.name}": manifest.identity for i, (path, manifest) in enumerate(real.items())},
        protocol={
            **protocol,
            "per_class": config.per_class,
            "seed": config.seed,
            "clip_latents": config.clip_latents,
            "precision": config.precision,
        },
        warnings=warnings,
    )
