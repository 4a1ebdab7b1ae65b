"""Images of every guidance scale against the real ones, and the rule that chooses a scale.

Agreement rises with g while variety falls and the images leave the real ones: the Fréchet distance sees both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from hdtrain.config.synthesis import SweepGuidanceConfig
from hdtrain.distributed.collectives import device
from hdtrain.errors import DataError, ManifestError
from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.judge import agreement_metric, judge_units, refuse_latents
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import K_DENSITY_COVERAGE, prdc, subsample
from hdtrain.features.encoders import Encoder
from hdtrain.features.neighbours import BLOCK, l2_normalise, squared_distances
from hdtrain.features.parts import Arrays, Parts, embed_shard, shard_units
from hdtrain.formats.manifest import Manifest, ancestors
from hdtrain.formats.results import Metric
from hdtrain.formats.sweep import AGREEMENT, DIVERSITY, FRECHET, ScaleResult, SweepResults
from hdtrain.models.classifier import Classifier

Dataset = tuple[Path, Manifest]
REAL = "real images"
"""Name of the set that the scales are held against."""


def check_judge(config: SweepGuidanceConfig, manifests: Mapping[Path, Manifest]) -> list[str]:
    """The classes that judge, guide and real images share.

    Raises:
        ManifestError: the judge takes latents, has seen synthetic images, had a part in making the images (it is ϕ, or
            φ of D′, or another ancestor of denoiser, decoder or ϕ), or the classes differ.
    """
    judge, guide = manifests[config.judge], manifests[config.classifier]
    refuse_latents(config.judge, judge)
    if judge.info.get("num_synthetic", 0) > 0:
        raise ManifestError(
            f"judge {config.judge} was trained on {judge.info['num_synthetic']} synthetic images; "
            "a judge must have seen real ones alone"
        )
    for name in ("denoiser", "decoder", "classifier"):
        directory: Path = getattr(config, name)
        for made_from, identity in ancestors(directory, manifests[directory]):
            if identity == judge.identity:
                raise ManifestError(
                    f"judge {config.judge} had a part in making the images: {name} {directory} was made with it "
                    f"({made_from}); train another classifier to judge them"
                )
    for path in [config.judge, *config.real]:
        if manifests[path].classes != guide.classes:
            raise ManifestError(
                f"classes differ: {path} has {', '.join(manifests[path].classes or ['none'])}; "
                f"classifier {config.classifier} has {', '.join(guide.classes or ['none'])}"
            )
    return guide.classes or []


def embed_and_judge(
    config: SweepGuidanceConfig,
    sets: Mapping[str, Sequence[Dataset]],
    encoder: Encoder,
    judge: Classifier,
    parts: Parts,
) -> dict[str, Arrays]:
    """`features`, `labels` and the judge's `predicted` class, by set; the same in every process."""
    embed = partial(embed_shard, encoder=encoder, batch_size=config.batch_size, resolution=config.resolution)
    judge = judge.to(device())
    tables = {}
    for name, datasets in sets.items():
        embedded, judged = [], []
        for path, manifest in datasets:
            embedded += shard_units(f"features-{manifest.identity[:16]}", (path, manifest), embed)
            judged += judge_units((path, manifest), judge, config.batch_size)
        parts.compute(f"sweep-guidance: features of {name}", embedded)
        parts.compute(f"sweep-guidance: judge on {name}", judged)
        table, said = parts.load(embedded), parts.load(judged)
        tables[name] = {**table, "predicted": said["probabilities"][:, 0].argmax(axis=1)}
    return tables


@dataclass
class ScaleScorer:
    """Scores the images of one scale against the real ones."""

    classes: list[str]
    encoder: str
    real: Arrays
    seed: int

    def __post_init__(self) -> None:
        features, labels = self.real["features"], self.real["labels"]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.classes))
        if (labels < 0).any() or counts.min() < 2:
            shown = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts, strict=True))
            raise DataError(f"real images: expected two or more of every class and a label on each, got {shown}")
        self._reference = Moments.of(features)
        self._spread = [mean_distance(self._sample(features[labels == label])) for label in range(len(self.classes))]

    def agreement(self, table: Arrays) -> Metric:
        """How often the judge sees the class that a table's images are labelled with."""
        return agreement_metric(table["predicted"], table["labels"])

    def score(self, guidance: float, table: Arrays) -> ScaleResult:
        """All figures."""
        features, labels = table["features"], table["labels"]
        n, m = len(features), len(self.real["features"])
        value = frechet_distance(Moments.of(features), self._reference)
        method = f"fp64 moments with N−1, against {m} real; biased upwards at small n, alike at every scale"
        metrics = {
            AGREEMENT: self.agreement(table),
            f"{FRECHET}{self.encoder}": Metric(value=value, n=n, method=method),
        }
        if min(n, m) > K_DENSITY_COVERAGE:
            figures = prdc(subsample(self.real["features"], self.seed), subsample(features, self.seed))
            metrics |= {name: Metric(value=figure, n=n, method="k = 3 or 5") for name, figure in figures.items()}
        per_class = {}
        for label, name in enumerate(self.classes):
            own = {column: values[labels == label] for column, values in table.items()}
            per_class[name] = {AGREEMENT: self.agreement(own), DIVERSITY: self._diversity(own["features"], label)}
        varied = [found[DIVERSITY].value for found in per_class.values()]
        method = "mean over classes of: mean distance of two images of the class, over that of two real ones"
        metrics[DIVERSITY] = Metric(value=float(np.mean(varied)), n=n, method=method)
        return ScaleResult(guidance=guidance, num_images=n, metrics=metrics, per_class=per_class)

    def _diversity(self, features: np.ndarray, label: int) -> Metric:
        spread = mean_distance(self._sample(features))
        value = spread / self._spread[label] if self._spread[label] else 0.0
        return Metric(
            value=value, n=len(features), method="mean distance of two unit feature vectors, over the real one"
        )

    def _sample(self, features: np.ndarray) -> Float64[np.ndarray, "n d"]:
        return l2_normalise(subsample(features, self.seed))


def mean_distance(unit: Float[np.ndarray, "n d"]) -> float:
    """Mean Euclidean distance over all pairs of two different rows (n ≥ 2)."""
    total = 0.0
    for first in range(0, len(unit), BLOCK):
        squared = squared_distances(unit[first : first + BLOCK], unit)
        squared[np.arange(len(squared)), np.arange(first, first + len(squared))] = 0
        total += float(np.sqrt(squared).sum())
    return total / (len(unit) * (len(unit) - 1))


def choose(scales: Sequence[ScaleResult], frechet: str, tolerance: float) -> tuple[float, str]:
    """The scale by rule, and the reason in words.

    Of the scales whose Fréchet distance is at most (1 + tolerance) times the smallest, the one with the best agreement;
    of several with the same agreement the smallest scale.
    """
    best = min(scales, key=lambda scale: scale.metrics[frechet].value)
    limit = best.metrics[frechet].value * (1 + tolerance)
    near = [scale for scale in scales if scale.metrics[frechet].value <= limit]
    chosen = min(near, key=lambda scale: (-scale.metrics[AGREEMENT].value, scale.guidance))
    among = ", ".join(f"{scale.guidance:g}" for scale in near)
    return chosen.guidance, (
        f"g = {chosen.guidance:g} has the best agreement ({chosen.metrics[AGREEMENT].value:.3f}) of the scales whose "
        f"{frechet} is within {100 * tolerance:g} % of the smallest ({best.metrics[frechet].value:.4g}, at g = "
        f"{best.guidance:g}): {among}"
    )


def score_sweep(
    config: SweepGuidanceConfig,
    manifests: Mapping[Path, Manifest],
    classes: list[str],
    encoder: Encoder,
    tables: Mapping[str, Arrays],
) -> SweepResults:
    """Every figure, and the choice: the user's, or the rule's."""
    scorer = ScaleScorer(classes, encoder.name, tables[REAL], config.seed)
    scales = [
        scorer.score(guidance, tables[name])
        for name, guidance in sorted(zip(config.data_sets, config.guidances, strict=True), key=lambda pair: pair[1])
    ]
    by_rule, reason = choose(scales, f"{FRECHET}{encoder.name}", config.tolerance)
    if config.choice is not None and config.choice != by_rule:
        reason = f"The rule would have chosen another: {reason}"
    elif config.choice is not None:
        reason = f"The rule says the same: {reason}"
    choice = by_rule if config.choice is None else config.choice
    agreement = next(scale for scale in scales if scale.guidance == choice).metrics[AGREEMENT]
    if agreement.interval and agreement.interval[0] <= 1 / len(classes):
        reason += f". But the agreement at g = {choice:g} is not above chance ({1 / len(classes):.3f})"
    judge = manifests[config.judge]
    return SweepResults(
        classes=classes,
        scales=scales,
        choice=choice,
        chosen_by="rule" if config.choice is None else "user",
        rule_choice=by_rule,
        reason=reason,
        tolerance=config.tolerance,
        real={AGREEMENT: scorer.agreement(tables[REAL])},
        encoder={
            "name": encoder.name,
            "weights": encoder.weights_sha256,
            "resize": encoder.resize,
            "resolution": encoder.resolution,
        },
        reference={"judge": judge.identity} | {path.name: manifests[path].identity for path in config.real},
        protocol={
            "solver": config.solver.model_dump(mode="json"),
            "per_class": config.per_class,
            "seed": config.seed,
            "clip_latents": config.clip_latents,
            "image_resolution": config.resolution,
        },
    )


def format_table(sweep: SweepResults) -> str:
    """One line a scale; the chosen one is marked."""
    columns = [sweep.frechet, DIVERSITY, "precision", "recall"]
    widths = [max(9, len(name)) for name in columns]
    titles = " ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    lines = [f"{'g':>8}  {AGREEMENT:<22} {titles}"]
    for scale in sweep.scales:
        agreement = scale.metrics[AGREEMENT]
        shown = f"{agreement.value:.3f}"
        if agreement.interval:
            shown += f" [{agreement.interval[0]:.3f}, {agreement.interval[1]:.3f}]"
        figures = [f"{scale.metrics[name].value:.4g}" if name in scale.metrics else "–" for name in columns]
        cells = " ".join(f"{text:>{width}}" for text, width in zip(figures, widths, strict=True))
        lines.append(f"{'→' if scale is sweep.chosen else ' '}{scale.guidance:>7g}  {shown:<22} {cells}")
    return "\n".join(lines)
