"""Nearest neighbours in feature space, blockwise and in fp64 (in fp32 the distance of near-copies is all rounding)."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int64

BLOCK = 1024


def l2_normalise(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of unit length, fp64."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def squared_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """‖a_i − b_j‖², never negative, fp64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
    return np.maximum(squared, 0, out=squared)


def nearest(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"], same: bool = False
) -> tuple[Float[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Euclidean distance to, and row of, every query's nearest reference; `same` leaves the query itself out."""
    distance, row = np.empty(len(queries)), np.empty(len(queries), np.int64)
    for first in range(0, len(queries), BLOCK):
        part = slice(first, first + BLOCK)
        squared = squared_distances(queries[part], references)
        if same:
            squared[np.arange(len(squared)), np.arange(first, first + len(squared))] = np.inf
        row[part] = squared.argmin(axis=1)
        distance[part] = np.sqrt(squared[np.arange(len(squared)), row[part]])
    return distance, row


def nearest_in_blocks(
    queries: Float[np.ndarray, "n d"], blocks: Iterable[Float[np.ndarray, "b d"]]
) -> Float[np.ndarray, " n"]:
    """Euclidean distance of every query to its nearest reference, these coming block by block; ∞ without any.

    Args:
        queries: unit vectors.
        blocks: of features, not normalised yet.
    """
    distance = np.full(len(queries), np.inf)
    for block in blocks:
        if len(block):
            np.minimum(distance, nearest(queries, l2_normalise(block))[0], out=distance)
    return distance


def kth_nearest_radius(features: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """Euclidean distance of every row to its k-th nearest other row (n > k)."""
    radius = np.empty(len(features))
    for first in range(0, len(features), BLOCK):
        squared = squared_distances(features[first : first + BLOCK], features)
        squared[np.arange(len(squared)), np.arange(first, first + len(squared))] = np.inf
        radius[first : first + BLOCK] = np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return radius
