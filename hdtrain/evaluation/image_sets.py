"""Image metrics of every set of synthetic images, and of the real test images as the yardstick.

A set's features are read from disk, a shard at a time or at most 10,000 rows together; sums over whole sets were made
before (`hdtrain.evaluation.moments`).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.evaluation.colour_statistics import ColourComparer, mean_ks
from hdtrain.evaluation.frechet import EXTRAPOLATION_SIZES, frechet_distance
from hdtrain.evaluation.frechet_pca import IMAGES_PER_COMPONENT, PrincipalComponents, distance_and_chance
from hdtrain.evaluation.judge import agreement_metric
from hdtrain.evaluation.kid import NUM_SUBSETS, kernel_distances
from hdtrain.evaluation.measurements import Measured
from hdtrain.evaluation.memorisation import MIN_REFERENCE, QUANTILE, SPACES, Thresholds, num_neighbours
from hdtrain.evaluation.moments import Moments, merged_moments
from hdtrain.evaluation.prdc import K_DENSITY_COVERAGE, K_PRECISION_RECALL, MAX_IMAGES, prdc
from hdtrain.evaluation.set_statistics import enough_for_frechet
from hdtrain.evaluation.statistics import interval_of, share_metric
from hdtrain.evaluation.subsets import drawn, frechet_infinity
from hdtrain.features.encoders import Encoder
from hdtrain.features.parts import Arrays
from hdtrain.features.store import FeatureStore
from hdtrain.formats.results import TRAINING, ColourStatistic, ImageSetResult, Metric, NearestDistances
from hdtrain.formats.sweep import AGREEMENT

MIN_KID_IMAGES = 10
Metrics = dict[str, Metric]
Colours = dict[str, dict[str, ColourStatistic]]
_Sums = list[Moments]
"""Of projected features: of all images, then of every class."""


@dataclass
class ImageScorer:
    """Scores sets against the training images; figures that need more images than there are go to `left_out`."""

    config: EvaluateConfig
    classes: list[str]
    encoder: Encoder
    train: Measured
    store: FeatureStore
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = merged_moments(self.train.features, self.store)
        self.colours = ColourComparer(self.classes, self.train.table)
        self.thresholds = Thresholds.of(self.train.table) if "features_relative" in self.train.table else None
        counts = np.bincount(self.train.labels)
        self.components = PrincipalComponents.fit(self.reference, int(counts[counts > 0].min()))
        self._projected = self._project(self.train)

    def protocol(self) -> dict[str, Any]:
        """Whatever another person needs to repeat the figures."""
        config, components = self.config, self.components
        return {
            "kid": {"subsets": NUM_SUBSETS, "subset_size": config.kid_subset_size, "seed": config.seed},
            "prdc": {"k_precision_recall": K_PRECISION_RECALL, "k_density_coverage": K_DENSITY_COVERAGE},
            "drawn_images": MAX_IMAGES,
            "fd_pca": {"components": components.count, "explained": components.explained} if components else None,
            "memorisation": {
                "quantile": QUANTILE / len(SPACES),
                "next_nearest": num_neighbours(len(self.train.labels)) - 1,
                "thresholds": self.thresholds.relative if self.thresholds else None,
                "pixels": config.memorisation_px,
            },
            "image_resolution": config.resolution,
        }

    def score(self, name: str, measured: Measured) -> ImageSetResult:
        """All metrics of one set, and those a class."""
        n, projected = len(measured.labels), self._project(measured)
        metrics = self._frechet(name, measured) | self._common(name, measured, None, projected)
        per_class = {
            class_name: self._of_class(f"{name}, {class_name}", measured, label, projected)
            for label, class_name in enumerate(self.classes)
            if (measured.labels == label).any()
        }
        colour = mean_ks(self.colours.compare(measured.table))
        if colour is not None:
            method = "Kolmogorov–Smirnov distance of colour statistics, mean over the statistics and classes"
            metrics["colour_ks"] = Metric(value=colour, n=n, method=method)
        return ImageSetResult(num_images=n, num_reference=len(self.train.labels), metrics=metrics, per_class=per_class)

    def colour_statistics(self, sets: dict[str, Measured]) -> dict[str, Colours]:
        """Of the training images, and of every set against them."""
        return {TRAINING: self.colours.compare(self.train.table, against=False)} | {
            name: self.colours.compare(measured.table) for name, measured in sets.items()
        }

    def distances(self, sets: dict[str, Measured]) -> dict[str, NearestDistances]:
        """How near the images of every set are to a training image, and those to each other."""
        if self.thresholds is None:
            return {}
        return {
            space: NearestDistances(
                threshold=self.thresholds.relative[space],
                real_to_real=_percentiles(self.train.table[f"{space}_relative"]),
                sets={name: _percentiles(measured.table[f"{space}_relative"]) for name, measured in sets.items()},
            )
            for space in SPACES
        }

    def _project(self, measured: Measured) -> _Sums | None:
        if self.components is None:
            return None
        features = measured.features
        blocks = ((features.shard(i), features.labels_of(i)) for i in range(len(features.paths)))
        return self.components.moments(blocks, len(self.classes))

    def _of_class(self, name: str, measured: Measured, label: int, projected: _Sums | None) -> Metrics:
        metrics: Metrics = {}
        n, theirs = (int((each.labels == label).sum()) for each in (measured, self.train))
        need = enough_for_frechet(measured.features.dim)
        if min(n, theirs) >= need:
            ours, real = (merged_moments(each.features, self.store, label) for each in (measured, self.train))
            method = f"against {theirs} real images of the class"
            metrics[self.encoder.metric_name("FD")] = Metric(value=frechet_distance(ours, real), n=n, method=method)
        return metrics | self._common(name, measured, label, projected)

    def _common(self, name: str, measured: Measured, label: int | None, projected: _Sums | None) -> Metrics:
        rows, theirs = _rows(measured, label), _rows(self.train, label)
        metrics = self._frechet_pca(name, 0 if label is None else 1 + label, projected)
        metrics |= self._neighbours(name, measured, rows, theirs)
        table = {column: values[rows] for column, values in measured.table.items()}
        return metrics | _agreement(table) | self._memorised(name, table)

    def _frechet(self, name: str, measured: Measured) -> Metrics:
        n, dim, reference = len(measured.features), measured.features.dim, self.reference
        if min(n, reference.n) < 2:
            return self._leave_out(name, self.encoder.metric_name("FD"), n, 2)
        method = f"fp64 moments with N−1, against {reference.n} real"
        if min(n, reference.n) < 2 * dim:
            method += f"; fewer than twice its {dim} dimensions, so biased upwards: compare at equal n only"
        value = frechet_distance(merged_moments(measured.features, self.store), reference)
        metrics = {self.encoder.metric_name("FD"): Metric(value=value, n=n, method=method)}
        if n < 2 * dim:
            return metrics | self._leave_out(name, self.encoder.metric_name("FDinf"), n, 2 * dim)
        limit = frechet_infinity(measured.features, measured.table["keys"], reference, self.config.seed)
        method = f"FD at 1/N = 0, line over {EXTRAPOLATION_SIZES} sizes from n/2 to n, nested"
        return metrics | {self.encoder.metric_name("FDinf"): Metric(value=limit, n=n, method=method)}

    def _frechet_pca(self, name: str, group: int, projected: _Sums | None) -> Metrics:
        if self.components is None or projected is None or self._projected is None:
            need = 2 * IMAGES_PER_COMPONENT
            return self._leave_out(name, "FDpca", int(np.bincount(self.train.labels).min()), need)
        ours, theirs = projected[group], self._projected[group]
        count, smallest = self.components.count, min(ours.n, theirs.n)
        if not self.components.enough(smallest):
            return self._leave_out(name, f"FDpca{count}", smallest, count + 1)
        value, chance = distance_and_chance(ours, theirs, self.config.seed)
        method = (
            f"on the first {count} principal components of the training images' features "
            f"({self.components.explained:.0%} of their variance)"
        )
        expected = f"{method}: two samples of these sizes from one Gaussian, that of the real images"
        return {
            f"FDpca{count}-{self.encoder.name}": Metric(value=value, n=ours.n, method=method),
            f"FDpca{count}_chance-{self.encoder.name}": Metric(
                value=float(chance.mean()), interval=interval_of(chance), n=ours.n, method=expected
            ),
        }

    def _neighbours(
        self, name: str, measured: Measured, rows: Int64[np.ndarray, " n"], theirs: Int64[np.ndarray, " m"]
    ) -> Metrics:
        """KID and precision, recall, density, coverage, on at most 10,000 images of each set."""
        smallest, seed = min(len(rows), len(theirs)), self.config.seed
        if smallest <= K_DENSITY_COVERAGE:
            self._leave_out(name, self.encoder.metric_name("KD"), smallest, MIN_KID_IMAGES)
            return self._leave_out(name, "precision, recall, density, coverage", smallest, K_DENSITY_COVERAGE + 1)
        ours = measured.features.rows(drawn(rows, seed))
        real = self.train.features.rows(drawn(theirs, seed))
        metrics = self._kernel(name, ours, real)
        method = f"k = 3 (precision, recall), k = 5 (density, coverage), at most {MAX_IMAGES} images a set"
        values = prdc(real, ours)
        return metrics | {metric: Metric(value=value, n=len(ours), method=method) for metric, value in values.items()}

    def _kernel(self, name: str, ours: np.ndarray, real: np.ndarray) -> Metrics:
        smallest = min(len(ours), len(real))
        if smallest < MIN_KID_IMAGES:
            return self._leave_out(name, self.encoder.metric_name("KD"), smallest, MIN_KID_IMAGES)
        size = min(self.config.kid_subset_size, smallest // 2)
        values = kernel_distances(ours, real, size, self.config.seed)
        method = f"mean of {NUM_SUBSETS} subsets of {size}; interval: the middle 95 % of the subsets"
        metric = Metric(value=float(values.mean()), interval=interval_of(values), n=len(ours), method=method)
        return {self.encoder.metric_name("KD"): metric}

    def _memorised(self, name: str, table: Arrays) -> Metrics:
        if self.thresholds is None:
            return self._leave_out(name, "memorised_share", len(self.train.labels), MIN_REFERENCE)
        rule = (
            "nearest training image over the mean of the next nearest, below the training images' own "
            f"{QUANTILE / len(SPACES):.1%} quantile"
        )
        spaces = {
            space: share_metric(
                self.thresholds.flags(table, space), f"in {space}: {rule} ({self.thresholds.relative[space]:.3g})"
            )
            for space in SPACES
        }
        either = share_metric(self.thresholds.either(table), f"in features or in pixels: {rule}")
        return {"memorised_share": either} | {f"memorised_share_{space}": found for space, found in spaces.items()}

    def _leave_out(self, name: str, metric: str, have: int, need: int) -> Metrics:
        self.left_out.append(f"{name}: {metric} needs {need} images, there are {have}")
        return {}


def _rows(measured: Measured, label: int | None) -> Int64[np.ndarray, " n"]:
    return np.arange(len(measured.labels)) if label is None else np.flatnonzero(measured.labels == label)


def _agreement(table: Arrays) -> Metrics:
    if "probabilities" not in table or not len(table["labels"]):
        return {}
    return {AGREEMENT: agreement_metric(table["probabilities"].argmax(axis=1), table["labels"])}


def _percentiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, 101))]
