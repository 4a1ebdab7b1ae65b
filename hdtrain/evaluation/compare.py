"""Figures of one set of images against another; each is a function of their statistics alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from hdtrain.evaluation.frechet import EXTRAPOLATION_SIZES, frechet_distance, frechet_distance_infinity
from hdtrain.evaluation.kid import NUM_SUBSETS, kernel_distances
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import K_DENSITY_COVERAGE, K_PRECISION_RECALL, MAX_IMAGES, prdc, subsample
from hdtrain.evaluation.set_statistics import Sample, SetStatistics, enough_for_frechet
from hdtrain.evaluation.statistics import interval_of
from hdtrain.formats.results import Metric

MIN_FRECHET_IMAGES = 2
MIN_KID_IMAGES = 10
PRDC = ("precision", "recall", "density", "coverage")
Metrics = dict[str, Metric]
_Short = tuple[str, int, int]
"""A figure that is left out, the images that it needs, the images that there are."""


@dataclass(frozen=True)
class Need:
    """A figure, and how many images of each set it needs."""

    figure: str
    images: int


def needs(name: Callable[[str], str], dim: int) -> list[Need]:
    """What each figure needs; `name` is the encoder's `metric_name`, `dim` its number of features."""
    return [
        Need(name("FD"), MIN_FRECHET_IMAGES),
        Need(name("FDinf"), 2 * dim),
        Need(name("KD"), MIN_KID_IMAGES),
        Need(", ".join(PRDC), K_DENSITY_COVERAGE + 1),
    ]


@dataclass
class Figures:
    """Scores sets and classes; what needs more images than there are goes to `left_out`."""

    name: Callable[[str], str]
    """What a figure on these features is called: the encoder's `metric_name`."""
    kid_subset_size: int
    seed: int
    left_out: list[str] = field(default_factory=list)

    def protocol(self) -> dict[str, Any]:
        """Whatever another person needs to repeat the figures."""
        return {
            "seed": self.seed,
            "kid": {"subsets": NUM_SUBSETS, "subset_size": self.kid_subset_size},
            "prdc": {
                "k_precision_recall": K_PRECISION_RECALL,
                "k_density_coverage": K_DENSITY_COVERAGE,
                "max_images": MAX_IMAGES,
            },
            "fd_infinity": {"sizes": EXTRAPOLATION_SIZES},
        }

    def whole(self, real: Sample, fake: Sample) -> Metrics:
        """Figures of all images."""
        metrics, short = self._score(real, fake)
        self.left_out += [f"{figure} needs {need:,} images a set, there are {have:,}" for figure, need, have in short]
        return metrics

    def by_class(self, real: SetStatistics, fake: SetStatistics) -> dict[str, Metrics]:
        """The same of every class that both sets have images of, in the order of `real`."""
        found: dict[str, Metrics] = {}
        missing: dict[tuple[str, int], list[int]] = {}
        for name in real.classes:
            found[name], short = self._score(real.of_class(name), fake.of_class(name))
            for figure, need, have in short:
                missing.setdefault((figure, need), []).append(have)
        for (figure, need), counts in missing.items():
            self.left_out.append(
                f"{figure} by class needs {need:,} images of the class in each set: left out for {len(counts)} of "
                f"{len(found)} classes (the smallest has {min(counts):,})"
            )
        return {name: metrics for name, metrics in found.items() if metrics}

    def _score(self, real: Sample, fake: Sample) -> tuple[Metrics, list[_Short]]:
        metrics, short = self._frechet(real, fake)
        theirs, ours = real.features, fake.features
        if theirs is None or ours is None:
            return metrics, short
        infinity, kernel, neighbours = needs(self.name, ours.shape[1])[1:]
        fewest = min(len(ours), len(theirs))
        if real.moments is not None:  # else it was said of the Fréchet distance itself
            if len(ours) < infinity.images:
                short.append((infinity.figure, infinity.images, len(ours)))
            else:
                metrics |= self._infinity(ours, real.moments)
        for need, score in ((kernel, self._kernel), (neighbours, self._prdc)):
            if fewest < need.images:
                short.append((need.figure, need.images, fewest))
            else:
                metrics |= score(ours, theirs)
        return metrics, short

    def _frechet(self, real: Sample, fake: Sample) -> tuple[Metrics, list[_Short]]:
        counts = [sample.num_images for sample in (real, fake) if sample.num_images is not None]
        if real.moments is None or fake.moments is None:
            dim = next(sample.features.shape[1] for sample in (real, fake) if sample.features is not None)
            return {}, [(self.name("FD"), enough_for_frechet(dim), min(counts))]
        if min(counts, default=MIN_FRECHET_IMAGES) < MIN_FRECHET_IMAGES:
            return {}, [(self.name("FD"), MIN_FRECHET_IMAGES, min(counts))]
        dim = len(real.moments.mean)
        against = "an unknown number of" if real.num_images is None else f"{real.num_images:,}"
        method = f"fp64 moments with N − 1, against {against} real"
        if min(counts, default=2 * dim) < 2 * dim:
            method += f"; fewer than twice its {dim} dimensions, so biased upwards: compare at equal n only"
        value = frechet_distance(fake.moments, real.moments)
        n = next(count for count in (fake.num_images, real.num_images, 0) if count is not None)
        return {self.name("FD"): Metric(value=value, n=n, method=method)}, []

    def _infinity(self, ours: Float[np.ndarray, "n d"], reference: Moments) -> Metrics:
        value, n = frechet_distance_infinity(ours, reference, self.seed), len(ours)
        method = f"Fréchet distance at 1/N = 0, line over {EXTRAPOLATION_SIZES} sizes from {n // 2:,} to {n:,}"
        return {self.name("FDinf"): Metric(value=value, n=n, method=method)}

    def _kernel(self, ours: Float[np.ndarray, "n d"], theirs: Float[np.ndarray, "m d"]) -> Metrics:
        fewest = min(len(ours), len(theirs))
        size = self.kid_subset_size if fewest >= self.kid_subset_size else fewest // 2
        values = kernel_distances(ours, theirs, size, self.seed)
        fewer = f" (half of the smaller set, not {self.kid_subset_size:,})" if size < self.kid_subset_size else ""
        method = f"mean of {NUM_SUBSETS} subsets of {size:,}{fewer}; interval: the middle 95 % of the subsets"
        metric = Metric(value=float(values.mean()), interval=interval_of(values), n=len(ours), method=method)
        return {self.name("KD"): metric}

    def _prdc(self, ours: Float[np.ndarray, "n d"], theirs: Float[np.ndarray, "m d"]) -> Metrics:
        values = prdc(subsample(theirs, self.seed), subsample(ours, self.seed))
        n = min(len(ours), MAX_IMAGES)
        method = (
            f"k = {K_PRECISION_RECALL} (precision, recall), k = {K_DENSITY_COVERAGE} (density, coverage), against "
            f"{min(len(theirs), MAX_IMAGES):,} real"
        )
        return {figure: Metric(value=value, n=n, method=method) for figure, value in values.items()}
