"""Mean and covariance of features from Σx and Σxxᵀ in fp64, merged in a fixed order."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

BLOCK = 4096


@dataclass(frozen=True)
class Moments:
    """Sums over n feature vectors."""

    n: int
    total: Float64[np.ndarray, " d"]
    outer: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """From features (n, d) of any float dtype, block after block."""
        dim = features.shape[1]
        blocks = (np.asarray(features[i : i + BLOCK], np.float64) for i in range(0, len(features), BLOCK))
        return cls.merged([cls(len(x), x.sum(0), x.T @ x) for x in blocks], dim)

    @classmethod
    def merged(cls, parts: Iterable["Moments"], dim: int) -> "Moments":
        """The sum of several, in the order given."""
        n, total, outer = 0, np.zeros(dim), np.zeros((dim, dim))
        for part in parts:
            n, total, outer = n + part.n, total + part.total, outer + part.outer
        return cls(n, total, outer)

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Sample mean."""
        return self.total / self.n

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """With N − 1; needs two samples."""
        return (self.outer - np.outer(self.total, self.total) / self.n) / (self.n - 1)
