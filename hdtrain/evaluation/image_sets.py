"""Image metrics of every set of synthetic images, and of the real test images as the yardstick."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.evaluation.colour_statistics import ColourComparer, mean_ks
from hdtrain.evaluation.frechet import frechet_distance, frechet_distance_infinity
from hdtrain.evaluation.frechet_pca import IMAGES_PER_COMPONENT, PrincipalComponents, distance_and_chance
from hdtrain.evaluation.kid import NUM_SUBSETS, kernel_distances
from hdtrain.evaluation.memorisation import MIN_REFERENCE, QUANTILE, SPACES, Thresholds, num_neighbours
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import K_DENSITY_COVERAGE, K_PRECISION_RECALL, MAX_IMAGES, prdc, subsample
from hdtrain.evaluation.statistics import interval_of, share_metric
from hdtrain.features.parts import Arrays
from hdtrain.formats.results import TRAINING, ColourStatistic, ImageSetResult, Metric, NearestDistances

MIN_KID_IMAGES = 10
Metrics = dict[str, Metric]
Colours = dict[str, dict[str, ColourStatistic]]


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
        self.colours = ColourComparer(self.classes, self.train)
        self.thresholds = Thresholds.of(self.train) if "features_relative" in self.train else None
        counts = np.bincount(self.train["labels"])
        self.components = PrincipalComponents.fit(self.train["features"], int(counts[counts > 0].min()))

    def protocol(self) -> dict[str, Any]:
        """Whatever another person needs to repeat the figures."""
        config, components = self.config, self.components
        return {
            "kid": {"subsets": NUM_SUBSETS, "subset_size": config.kid_subset_size, "seed": config.seed},
            "prdc": {"k_precision_recall": K_PRECISION_RECALL, "k_density_coverage": K_DENSITY_COVERAGE},
            "fd_pca": {"components": components.count, "explained": components.explained} if components else None,
            "memorisation": {
                "quantile": QUANTILE / len(SPACES),
                "next_nearest": num_neighbours(len(self.train["labels"])) - 1,
                "thresholds": self.thresholds.relative if self.thresholds else None,
                "pixels": config.memorisation_px,
            },
            "image_resolution": config.resolution,
        }

    def score(self, name: str, table: Arrays) -> ImageSetResult:
        """All metrics of one set, and those a class."""
        features, real = table["features"], self.train["features"]
        metrics = self._frechet(name, features) | self._common(name, table, self.train)
        per_class = {
            class_name: self._of_class(f"{name}, {class_name}", table, label)
            for label, class_name in enumerate(self.classes)
            if (table["labels"] == label).any()
        }
        colour = mean_ks(self.colours.compare(table))
        if colour is not None:
            method = "Kolmogorov–Smirnov distance of colour statistics, mean over the statistics and classes"
            metrics["colour_ks"] = Metric(value=colour, n=len(features), method=method)
        return ImageSetResult(num_images=len(features), num_reference=len(real), metrics=metrics, per_class=per_class)

    def colour_statistics(self, sets: dict[str, Arrays]) -> dict[str, Colours]:
        """Of the training images, and of every set against them."""
        return {TRAINING: self.colours.compare(self.train, against=False)} | {
            name: self.colours.compare(table) for name, table in sets.items()
        }

    def distances(self, sets: dict[str, Arrays]) -> dict[str, NearestDistances]:
        """How near the images of every set are to a training image, and those to each other."""
        if self.thresholds is None:
            return {}
        return {
            space: NearestDistances(
                threshold=self.thresholds.relative[space],
                real_to_real=_percentiles(self.train[f"{space}_relative"]),
                sets={name: _percentiles(table[f"{space}_relative"]) for name, table in sets.items()},
            )
            for space in SPACES
        }

    def _of_class(self, name: str, table: Arrays, label: int) -> Metrics:
        ours, theirs = ({k: v[t["labels"] == label] for k, v in t.items()} for t in (table, self.train))
        metrics: Metrics = {}
        smallest = min(len(ours["labels"]), len(theirs["labels"]))
        if smallest >= 2 * self.train["features"].shape[1]:
            value = frechet_distance(Moments.of(ours["features"]), Moments.of(theirs["features"]))
            method = f"against {len(theirs['labels'])} real images of the class"
            metrics[f"FD-{self.encoder}"] = Metric(value=value, n=len(ours["labels"]), method=method)
        return metrics | self._common(name, ours, theirs)

    def _common(self, name: str, ours: Arrays, theirs: Arrays) -> Metrics:
        features, real = ours["features"], theirs["features"]
        metrics = self._frechet_pca(name, features, real) | self._kernel(name, features, real)
        return metrics | self._prdc(name, features, real) | _agreement(ours) | self._memorised(name, ours)

    def _frechet(self, name: str, features: Float[np.ndarray, "n d"]) -> Metrics:
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

    def _frechet_pca(self, name: str, features: np.ndarray, real: np.ndarray) -> Metrics:
        if self.components is None:
            need = 2 * IMAGES_PER_COMPONENT
            return self._leave_out(name, "FDpca", int(np.bincount(self.train["labels"]).min()), need)
        count, smallest = self.components.count, min(len(features), len(real))
        if not self.components.enough(smallest):
            return self._leave_out(name, f"FDpca{count}", smallest, count + 1)
        project = self.components.project
        value, chance = distance_and_chance(project(features), project(real), self.config.seed)
        method = (
            f"on the first {count} principal components of the training images' features "
            f"({self.components.explained:.0%} of their variance)"
        )
        expected = f"{method}: two samples of these sizes from one Gaussian, that of the real images"
        n = len(features)
        return {
            f"FDpca{count}-{self.encoder}": Metric(value=value, n=n, method=method),
            f"FDpca{count}_chance-{self.encoder}": Metric(
                value=float(chance.mean()), interval=interval_of(chance), n=n, method=expected
            ),
        }

    def _kernel(self, name: str, features: np.ndarray, real: np.ndarray) -> Metrics:
        smallest = min(len(features), len(real))
        if smallest < MIN_KID_IMAGES:
            return self._leave_out(name, "KID", smallest, MIN_KID_IMAGES)
        size = min(self.config.kid_subset_size, smallest // 2)
        values = kernel_distances(features, real, size, self.config.seed)
        method = f"mean of {NUM_SUBSETS} subsets of {size}; interval: the middle 95 % of the subsets"
        metric = Metric(value=float(values.mean()), interval=interval_of(values), n=len(features), method=method)
        return {f"KID-{self.encoder}": metric}

    def _prdc(self, name: str, features: np.ndarray, real: np.ndarray) -> Metrics:
        smallest = min(len(features), len(real))
        if smallest <= K_DENSITY_COVERAGE:
            return self._leave_out(name, "precision, recall, density, coverage", smallest, K_DENSITY_COVERAGE + 1)
        values = prdc(subsample(real, self.config.seed), subsample(features, self.config.seed))
        n = min(len(features), MAX_IMAGES)
        method = f"k = 3 (precision, recall), k = 5 (density, coverage), at most {MAX_IMAGES} images a set"
        return {metric: Metric(value=value, n=n, method=method) for metric, value in values.items()}

    def _memorised(self, name: str, table: Arrays) -> Metrics:
        if self.thresholds is None:
            return self._leave_out(name, "memorised_share", len(self.train["labels"]), MIN_REFERENCE)
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


def _agreement(table: Arrays) -> Metrics:
    if "probabilities" not in table or not len(table["labels"]):
        return {}
    hits = table["probabilities"].argmax(axis=1) == table["labels"]
    return {"label_agreement": share_metric(hits, "judge's most probable class is the label")}


def _percentiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, 101))]
