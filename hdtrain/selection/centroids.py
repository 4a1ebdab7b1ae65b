"""Class centroids of the real images: m_k = mean of class k's L2-normalised features, not normalised again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from hdtrain.errors import DataError
from hdtrain.features.neighbours import l2_normalise, squared_distances


@dataclass(frozen=True)
class Centroids:
    """One mean and count a class, in the order of the classes."""

    means: Float64[np.ndarray, "k d"]
    counts: Int64[np.ndarray, " k"]

    @classmethod
    def from_features(
        cls, features: Float[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], classes: Sequence[str]
    ) -> "Centroids":
        """From raw features of the real training images; unlabelled ones (−1) do not count.

        Raises:
            DataError: a class without images, by name.
        """
        counts = np.array([(labels == k).sum() for k in range(len(classes))], np.int64)
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            raise DataError(f"no real image of class {', '.join(empty)}: every class needs one to have a centroid")
        unit = l2_normalise(features)
        return cls(np.stack([unit[labels == k].mean(axis=0) for k in range(len(classes))]), counts)

    def distances(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n k"]:
        """d_k = ‖f − m_k‖² of raw features, f their unit vectors."""
        return squared_distances(l2_normalise(features), self.means)
