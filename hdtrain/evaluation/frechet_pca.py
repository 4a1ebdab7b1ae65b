"""Fréchet distance in few dimensions, so that a class of some dozen images can be measured, beside what chance gives.

With fewer than about twice as many images as dimensions the plain distance is mostly bias. Here the features are first
projected on the leading principal components of the real training images of all classes. What bias is left stands
beside it: the distance that two samples of these sizes have when both come from one Gaussian, that of the real images.
So it is no FD, nor comparable with one, and carries another name: `FDpca16-ENCODER`, and `FDpca16_chance-ENCODER`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments

MAX_COMPONENTS = 64
IMAGES_PER_COMPONENT = 2
CHANCE_DRAWS = 50


@dataclass(frozen=True)
class PrincipalComponents:
    """A projection fitted on the training images."""

    mean: Float64[np.ndarray, " d"]
    directions: Float64[np.ndarray, "d c"]
    explained: float
    """Share of the training images' variance."""

    @classmethod
    def fit(cls, training: Moments, smallest_class: int) -> "PrincipalComponents | None":
        """As many components as the smallest class allows: a power of 2, at most 64; None for fewer than 2."""
        allowed = min(MAX_COMPONENTS, smallest_class // IMAGES_PER_COMPONENT, len(training.total))
        if allowed < 2:
            return None
        count = 2 ** (allowed.bit_length() - 1)
        values, vectors = np.linalg.eigh(training.covariance)
        total = float(values.sum())
        explained = float(values[::-1][:count].sum() / total) if total else 1
        return cls(training.mean, vectors[:, ::-1][:, :count], explained)

    @property
    def count(self) -> int:
        """Number of components."""
        return self.directions.shape[1]

    def enough(self, num_images: int) -> bool:
        """Whether so many images have a covariance of full rank."""
        return num_images > self.count

    def project(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n c"]:
        """Coordinates of features."""
        return np.asarray((np.asarray(features, np.float64) - self.mean) @ self.directions)

    def moments(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[Moments]:
        """Sums over the coordinates of a whole set, then over those of each class, in one pass.

        Args:
            blocks: features (b, d) and labels (b) of the set, part by part.
            num_classes: labels are 0 to this.
        """
        sums = [Moments.merged([], self.count) for _ in range(1 + num_classes)]
        for features, labels in blocks:
            x = self.project(features)
            for group, rows in enumerate([x, *(x[labels == label] for label in range(num_classes))]):
                sums[group] = Moments.merged([sums[group], Moments.of(rows)], self.count)
        return sums


def distance_and_chance(ours: Moments, theirs: Moments, seed: int) -> tuple[float, Float64[np.ndarray, " b"]]:
    """Fréchet distance of two projected sets, and of pairs of samples of their sizes from theirs' Gaussian.

    Both need more images than coordinates. Samples are drawn as their sums alone: the mean is Gaussian, the scatter
    Wishart and independent of it (Bartlett 1934), so any number of images costs the same.
    """
    values, vectors = np.linalg.eigh(theirs.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    rng = np.random.default_rng(seed)

    def sample(n: int) -> Moments:
        mean = root @ rng.standard_normal(len(root)) / np.sqrt(n)
        lower = np.tril(rng.standard_normal(root.shape), -1)
        np.fill_diagonal(lower, np.sqrt(rng.chisquare(n - 1 - np.arange(len(root)))))
        factor = root @ lower
        return Moments(n, n * mean, factor @ factor.T + n * np.outer(mean, mean))

    chance = [frechet_distance(sample(ours.n), sample(theirs.n)) for _ in range(CHANCE_DRAWS)]
    return frechet_distance(ours, theirs), np.array(chance)
