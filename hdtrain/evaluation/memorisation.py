"""Is a synthetic image a copy? How near it is to one training image, held against what real images show.

Near means: compared with the next nearest ones (after Carlini et al. 2023, arXiv 2301.13188). The plain distance
says little: smooth images lie near each other by nature, textured ones far from everything, their own blurred copy too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from hdtrain.evaluation.pixels import nearest_pixels
from hdtrain.features.neighbours import BLOCK, l2_normalise, squared_distances
from hdtrain.features.parts import Arrays

QUANTILE = 0.01
"""Share of real images that both spaces together may flag; each gets half of it."""
NEIGHBOURS = 20
"""Next nearest training images that a distance is divided by the mean distance of."""
MIN_REFERENCE = 20
"""Training images below which such a quantile means nothing."""
SPACES = ("features", "pixels")


def num_neighbours(num_training: int) -> int:
    """How many neighbours are looked at: the nearest, and 20 more or half of the training images if that is less."""
    return 1 + max(1, min(NEIGHBOURS, (num_training - 1) // 2))


def relative_distance(distances: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Nearest over the mean of the next nearest, 0..1; 1 where that is 0, since no one image was copied then."""
    following = distances[:, 1:].mean(axis=1)
    return np.divide(distances[:, 0], following, out=np.ones(len(distances)), where=following > 0)


@dataclass(frozen=True)
class TrainingImages:
    """What the images of a set are held against."""

    blocks: Callable[[], Iterable[Float[np.ndarray, "b d"]]]
    """Their features in order, block by block, from the first at every call."""
    pixels: UInt8[np.ndarray, "m p p 3"]

    def __len__(self) -> int:
        return len(self.pixels)


def nearest_features(
    queries: Float[np.ndarray, "n d"],
    blocks: Callable[[], Iterable[Float[np.ndarray, "b d"]]],
    k: int,
    leave_out: Int64[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, "n k"], Int64[np.ndarray, " n"]]:
    """Ascending distances to the k nearest references between unit vectors, and the nearest one's row; blockwise."""
    queries = l2_normalise(queries)
    distances, rows = np.empty((len(queries), k)), np.empty(len(queries), np.int64)
    for first in range(0, len(queries), BLOCK):
        part = slice(first, first + BLOCK)
        own = None if leave_out is None else leave_out[part]
        distances[part], rows[part] = _nearest(queries[part], blocks(), k, own)
    return distances, rows


def _nearest(
    queries: np.ndarray, blocks: Iterable[np.ndarray], k: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    everyone, start = np.arange(len(queries)), 0
    best, least, row = np.empty((len(queries), 0)), np.full(len(queries), np.inf), np.zeros(len(queries), np.int64)
    for block in blocks:
        if not len(block):
            continue
        squared = squared_distances(queries, l2_normalise(block))
        if own is not None:
            inside = np.flatnonzero((own >= start) & (own < start + len(block)))
            squared[inside, own[inside] - start] = np.inf
        place = squared.argmin(axis=1)
        nearer = squared[everyone, place] < least
        least[nearer], row[nearer] = squared[everyone, place][nearer], start + place[nearer]
        best = np.concatenate([best, squared], axis=1)
        best = np.partition(best, k - 1, axis=1)[:, :k] if best.shape[1] > k else best
        start += len(block)
    return np.sqrt(np.sort(best, axis=1)), row


def nearest_training_images(queries: Arrays, train: TrainingImages, first_row: int | None = None) -> Arrays:
    """Per space: `_distance`, `_relative` and `_row` of the nearest training image; `symmetry` of the pixels.

    Args:
        queries: `features` and `pixels` of some images.
        train: the training images, two or more.
        first_row: the queries are training images themselves, from this row on; each leaves itself out.
    """
    n, k = len(queries["features"]), num_neighbours(len(train))
    own = None if first_row is None else np.arange(first_row, first_row + n)
    distances, rows = nearest_features(queries["features"], train.blocks, k, own)
    pixels = nearest_pixels(queries["pixels"], train.pixels, k, own)
    return {
        "features_distance": distances[:, 0],
        "features_relative": relative_distance(distances),
        "features_row": rows,
        "pixels_distance": pixels.distance[:, 0],
        "pixels_relative": relative_distance(pixels.distance),
        "pixels_row": pixels.row,
        "symmetry": pixels.symmetry,
    }


@dataclass(frozen=True)
class Thresholds:
    """What counts as memorised, by space."""

    relative: dict[str, float]

    @classmethod
    def of(cls, train: Arrays) -> "Thresholds":
        """The 0.5 % quantiles of the training images' own relative distances."""
        share = QUANTILE / len(SPACES)
        return cls({space: float(np.quantile(train[f"{space}_relative"], share)) for space in SPACES})

    def flags(self, table: Arrays, space: str) -> Bool[np.ndarray, " n"]:
        """Relatively nearer to one training image than 99.5 % of the training images are to another one."""
        return np.asarray(table[f"{space}_relative"] < self.relative[space])

    def either(self, table: Arrays) -> Bool[np.ndarray, " n"]:
        """Flagged in one space or the other."""
        return self.flags(table, "features") | self.flags(table, "pixels")


def nearest_pairs(
    relative: Float[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " m"]:
    """Rows of about `count` relatively nearest synthetic images, evenly over the classes, nearest first."""
    classes = np.unique(labels)
    per_class = -(-count // max(len(classes), 1))
    rows = []
    for label in classes:
        own = np.flatnonzero(labels == label)
        rows.append(own[np.argsort(relative[own], kind="stable")[:per_class]])
    chosen = np.concatenate([np.empty(0, np.int64), *rows])
    return chosen[np.argsort(relative[chosen], kind="stable")]
