"""Class centroids of the real images: m_k = mean of class k's L2-normalised features, not normalised again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float64, Int64

from hdtrain.errors import DataError
from hdtrain.features.neighbours import l2_normalise, squared_distances
from hdtrain.features.parts import Arrays, Parts, Unit
from hdtrain.features.store import FeatureSet


@dataclass(frozen=True)
class Sums:
    """Σ f/‖f‖ and number of the images of every class, over some real images, in fp64."""

    totals: Float64[np.ndarray, "k d"]
    counts: Int64[np.ndarray, " k"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], num_classes: int) -> "Sums":
        """From raw features; unlabelled images (−1) do not count."""
        unit = l2_normalise(features)
        own = [unit[labels == k] for k in range(num_classes)]
        return cls(np.stack([rows.sum(axis=0) for rows in own]), np.array([len(rows) for rows in own], np.int64))


@dataclass(frozen=True)
class Centroids:
    """One mean and count a class, in the order of the classes."""

    means: Float64[np.ndarray, "k d"]
    counts: Int64[np.ndarray, " k"]

    @classmethod
    def of(cls, parts: Iterable[Sums], num_classes: int, dim: int) -> "Centroids":
        """From the sums of parts of the real training images, added in the order given."""
        totals, counts = np.zeros((num_classes, dim)), np.zeros(num_classes, np.int64)
        for part in parts:
            totals, counts = totals + part.totals, counts + part.counts
        return cls(totals / np.maximum(counts, 1)[:, None], counts)

    def check(self, classes: Sequence[str]) -> None:
        """Raise DataError if a class has no images, and so no centroid; it is named."""
        empty = [name for name, count in zip(classes, self.counts, strict=True) if not count]
        if empty:
            raise DataError(f"no real image of class {', '.join(empty)}: every class needs one to have a centroid")

    def distances(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n k"]:
        """d_k = ‖f − m_k‖² of raw features, f their unit vectors; ∞ where a class has no images."""
        return np.where(self.counts > 0, squared_distances(l2_normalise(features), self.means), np.inf)


def sums_of_shard(features: FeatureSet, number: int, num_classes: int) -> Arrays:
    """`Sums` of one shard, as a part."""
    sums = Sums.of(features.shard(number), features.pieces[number].listing()[1], num_classes)
    return {"totals": sums.totals, "counts": sums.counts}


def make_centroids(name: str, real: Sequence[FeatureSet], num_classes: int, parts: Parts) -> Centroids:
    """Centroids over one or several sets; the sums of each shard are a part, and all merge in the shards' order."""
    units = [
        Unit(f"{name}-{i}-{number:06d}", samples, partial(sums_of_shard, features, number, num_classes))
        for i, features in enumerate(real)
        for number, samples in enumerate(features.samples)
    ]
    parts.compute("centroids", units)
    sums = (Sums(part["totals"], part["counts"]) for part in parts.each(units))
    return Centroids.of(sums, num_classes, real[0].dim)
