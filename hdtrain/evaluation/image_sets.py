"""Image metrics of every set of synthetic images, and of the real test images as the yardstick."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.evaluation.frechet import frechet_distance, frechet_distance_infinity
from hdtrain.evaluation.inputs import Inputs
from hdtrain.evaluation.kid import NUM_SUBSETS, kernel_distances
from hdtrain.evaluation.memorisation import QUANTILE, Memorisation, memorisation, nearest_pairs, real_threshold
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import K_DENSITY_COVERAGE, MAX_IMAGES, prdc, subsample
from hdtrain.evaluation.statistics import interval_of, share_metric
from hdtrain.features.encoders import Encoder
from hdtrain.features.parts import Arrays, Parts, classify_shard, embed_shard, shard_units
from hdtrain.formats.results import CANDIDATES, YARDSTICK, ImageSetResult, Metric, NearestPair
from hdtrain.models.classifier import load_classifier

NUM_PAIRS = 24
MIN_KID_IMAGES = 20
MIN_MEMORISATION_REFERENCE = 20
"""Training images below which a 1 % quantile of their distances means nothing."""


def embed_sets(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, parts: Parts
) -> tuple[Arrays, dict[str, Arrays]]:
    """Features (and the judge's `probabilities`) of the training images and of every set, each folder read once."""
    embed = partial(embed_shard, encoder=encoder, batch_size=config.batch_size, resolution=config.resolution)
    judge = load_classifier(config.judge).to(device()) if config.judge else None
    by_path: dict[Path, Arrays] = {}
    for name, (path, manifest) in {"train": inputs.train, **inputs.image_sets}.items():
        if path in by_path:
            continue
        units = shard_units(f"features-{manifest.identity[:16]}", (path, manifest), embed)
        parts.compute(f"evaluate: features of {name}", units)
        table = parts.load(units)
        if judge is not None:
            classify = partial(classify_shard, classifiers=[judge], batch_size=config.batch_size)
            judged = shard_units(f"judge-{manifest.identity[:16]}", (path, manifest), classify)
            parts.compute(f"evaluate: judge on {name}", judged)
            table["probabilities"] = parts.load(judged)["probabilities"][:, 0]
        by_path[path] = table
    return by_path[inputs.train[0]], {name: by_path[path] for name, (path, _) in inputs.image_sets.items()}


@dataclass
class ImageScorer:
    """Scores sets against the training images; figures that need more images than there are go to `left_out`."""

    config: EvaluateConfig
    classes: list[str]
    encoder: str
    train: Arrays
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = Moments.of(self.train["features"])
        enough = len(self.train["labels"]) >= MIN_MEMORISATION_REFERENCE
        self.threshold = real_threshold(self.train["features"]) if enough else None

    def score(self, name: str, table: Arrays) -> ImageSetResult:
        """All metrics of one set, and those a class."""
        features, real = table["features"], self.train["features"]
        metrics = self._frechet(name, features)
        metrics |= self._kernel(name, features, real, self.config.kid_subset_size)
        metrics |= self._prdc(name, features, real)
        metrics |= self._agreement(table, np.ones(len(features), bool))
        metrics |= self._memorised(name, features)
        per_class = {
            class_name: self._of_class(f"{name}, {class_name}", table, label)
            for label, class_name in enumerate(self.classes)
            if (table["labels"] == label).any()
        }
        return ImageSetResult(num_images=len(features), num_reference=len(real), metrics=metrics, per_class=per_class)

    def nearest(self, sets: dict[str, Arrays]) -> list[NearestPair]:
        """The nearest pairs of the candidates or, without those, of all arms' synthetic images."""
        names = [CANDIDATES] if CANDIDATES in sets else [name for name in sets if name != YARDSTICK]
        if self.threshold is None or not names:
            return []
        columns = ("keys", "labels", "features")
        pool = {column: np.concatenate([sets[name][column] for name in names]) for column in columns}
        _, once = np.unique(pool["keys"], return_index=True)
        pool = {column: values[once] for column, values in pool.items()}
        found = self._memorisation(pool["features"], self.threshold)
        return [
            NearestPair(
                synthetic=str(pool["keys"][row]),
                real=str(self.train["keys"][found.nearest_real[row]]),
                label=self.classes[pool["labels"][row]],
                distance=float(found.distance[row]),
                memorised=bool(found.memorised[row]),
            )
            for row in nearest_pairs(found, pool["labels"], NUM_PAIRS)
        ]

    def _of_class(self, name: str, table: Arrays, label: int) -> dict[str, Metric]:
        own, real_own = table["labels"] == label, self.train["labels"] == label
        features, real = table["features"][own], self.train["features"][real_own]
        size = min(self.config.kid_subset_size, len(features), len(real))
        metrics = self._kernel(name, features, real, max(size, MIN_KID_IMAGES))
        if min(len(features), len(real)) >= 2 * features.shape[1]:
            value = frechet_distance(Moments.of(features), Moments.of(real))
            metrics[f"FD-{self.encoder}"] = Metric(value=value, n=len(features), method=f"against {len(real)} real")
        return metrics | self._agreement(table, own)

    def _frechet(self, name: str, features: Float[np.ndarray, "n d"]) -> dict[str, Metric]:
        n, dim = features.shape
        if min(n, self.reference.n) < 2:
            return self._leave_out(name, "FD", n, 2)
        method = f"fp64 moments with N−1, against {self.reference.n} real"
        if min(n, self.reference.n) < 2 * dim:
            method += f"; fewer than twice its {dim} dimensions, so biased upwards: compare at equal n only"
        value = frechet_distance(Moments.of(features), self.reference)
        metrics = {f"FD-{self.encoder}": Metric(value=value, n=n, method=method)}
        if n < 2 * dim:
            return metrics | self._leave_out(name, "FDinf", n, 2 * dim)
        limit = frechet_distance_infinity(features, self.reference, self.config.seed)
        extrapolated = Metric(value=limit, n=n, method="FD at 1/N = 0, line over 15 sizes from n/2 to n")
        return metrics | {f"FDinf-{self.encoder}": extrapolated}

    def _kernel(self, name: str, features: np.ndarray, real: np.ndarray, size: int) -> dict[str, Metric]:
        if min(len(features), len(real)) < size:
            return self._leave_out(name, "KID", min(len(features), len(real)), size)
        values = kernel_distances(features, real, size, self.config.seed)
        method = f"mean of {NUM_SUBSETS} subsets of {size}; interval: the middle 95 % of the subsets"
        metric = Metric(value=float(values.mean()), interval=interval_of(values), n=len(features), method=method)
        return {f"KID-{self.encoder}": metric}

    def _prdc(self, name: str, features: np.ndarray, real: np.ndarray) -> dict[str, Metric]:
        smallest = min(len(features), len(real))
        if smallest <= K_DENSITY_COVERAGE:
            return self._leave_out(name, "precision, recall, density, coverage", smallest, K_DENSITY_COVERAGE + 1)
        values = prdc(subsample(real, self.config.seed), subsample(features, self.config.seed))
        n = min(len(features), MAX_IMAGES)
        method = f"k = 3 (precision, recall), k = 5 (density, coverage), at most {MAX_IMAGES} images a set"
        return {metric: Metric(value=value, n=n, method=method) for metric, value in values.items()}

    def _agreement(self, table: Arrays, own: np.ndarray) -> dict[str, Metric]:
        if "probabilities" not in table or not own.any():
            return {}
        hits = table["probabilities"][own].argmax(axis=1) == table["labels"][own]
        return {"label_agreement": share_metric(hits, "judge's most probable class is the label")}

    def _memorised(self, name: str, features: np.ndarray) -> dict[str, Metric]:
        if self.threshold is None:
            return self._leave_out(name, "memorised_share", len(self.train["labels"]), MIN_MEMORISATION_REFERENCE)
        found = self._memorisation(features, self.threshold)
        method = (
            f"nearer to a training image than the {QUANTILE:.0%} quantile ({self.threshold:.4g}) of the training "
            "images' distances to each other, unit feature vectors"
        )
        return {"memorised_share": share_metric(found.memorised, method)}

    def _memorisation(self, features: np.ndarray, threshold: float) -> Memorisation:
        return memorisation(features, self.train["features"], threshold)

    def _leave_out(self, name: str, metric: str, have: int, need: int) -> dict[str, Metric]:
        self.left_out.append(f"{name}: {metric} needs {need} images, there are {have}")
        return {}
