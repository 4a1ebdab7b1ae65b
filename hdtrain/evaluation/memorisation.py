"""Is a synthetic image a copy? Its distance to the nearest training image against those between training images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from hdtrain.features.neighbours import l2_normalise, nearest

QUANTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """One row a synthetic image; distances are Euclidean, between unit feature vectors."""

    distance: Float[np.ndarray, " n"]
    nearest_real: Int64[np.ndarray, " n"]
    threshold: float

    @property
    def memorised(self) -> Bool[np.ndarray, " n"]:
        """Nearer to a training image than 99 % of the training images are to their nearest other one."""
        return self.distance < self.threshold


def real_threshold(real: Float[np.ndarray, "m d"]) -> float:
    """The 1 % quantile of the training images' distances to their nearest other training image (m ≥ 2)."""
    unit = l2_normalise(real)
    return float(np.quantile(nearest(unit, unit, same=True)[0], QUANTILE))


def memorisation(synthetic: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], threshold: float) -> Memorisation:
    """Compare raw features of synthetic images with those of the training images."""
    distance, row = nearest(l2_normalise(synthetic), l2_normalise(real))
    return Memorisation(distance, row, threshold)


def nearest_pairs(result: Memorisation, labels: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    """Rows of about `count` nearest synthetic images, evenly over the classes, nearest first."""
    classes = np.unique(labels)
    per_class = -(-count // max(len(classes), 1))
    rows = []
    for label in classes:
        own = np.flatnonzero(labels == label)
        rows.append(own[np.argsort(result.distance[own], kind="stable")[:per_class]])
    chosen = np.concatenate([np.empty(0, np.int64), *rows])
    return chosen[np.argsort(result.distance[chosen], kind="stable")]
