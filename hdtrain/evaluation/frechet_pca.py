"""Fréchet distance in few dimensions, so that a class of some dozen images can be measured, beside what chance gives.

With fewer than about twice as many images as dimensions the plain distance is mostly bias. Here the features are first
projected on the leading principal components of the real training images of all classes. What bias is left stands
beside it: the distance that two samples of these sizes have when both come from one Gaussian, that of the real images.
So it is no FD, nor comparable with one, and carries another name: `FDpca16-ENCODER`, and `FDpca16_chance-ENCODER`.
"""

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
    def fit(cls, features: Float[np.ndarray, "n d"], smallest_class: int) -> "PrincipalComponents | None":
        """As many components as the smallest class allows: a power of 2, at most 64; None for fewer than 2."""
        allowed = min(MAX_COMPONENTS, smallest_class // IMAGES_PER_COMPONENT, features.shape[1])
        if allowed < 2:
            return None
        count = 2 ** (allowed.bit_length() - 1)
        moments = Moments.of(features)
        values, vectors = np.linalg.eigh(moments.covariance)
        total = float(values.sum())
        return cls(moments.mean, vectors[:, ::-1][:, :count], float(values[::-1][:count].sum() / total) if total else 1)

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


def distance_and_chance(
    ours: Float64[np.ndarray, "n c"], theirs: Float64[np.ndarray, "m c"], seed: int
) -> tuple[float, Float64[np.ndarray, " b"]]:
    """Fréchet distance of two projected sets, and of pairs of samples of their sizes from theirs' Gaussian."""
    reference = Moments.of(theirs)
    values, vectors = np.linalg.eigh(reference.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    rng = np.random.default_rng(seed)

    def sample(count: int) -> Moments:
        return Moments.of(rng.standard_normal((count, theirs.shape[1])) @ root.T)

    chance = [frechet_distance(sample(len(ours)), sample(len(theirs))) for _ in range(CHANCE_DRAWS)]
    return frechet_distance(Moments.of(ours), reference), np.array(chance)
