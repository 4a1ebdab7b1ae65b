"""Figures of a part of a large set: which images are drawn, and FD∞ over nested subsets, a shard at a time."""

from itertools import chain

import numpy as np
from jaxtyping import Int64

from hdtrain.evaluation.frechet import EXTRAPOLATION_SIZES, frechet_distance
from hdtrain.evaluation.moments import BLOCK, Moments
from hdtrain.evaluation.prdc import MAX_IMAGES
from hdtrain.features.store import FeatureSet


def drawn(rows: Int64[np.ndarray, " n"], seed: int, limit: int = MAX_IMAGES) -> Int64[np.ndarray, " m"]:
    """At most `limit` of some rows, drawn without replacement, in their order; all of them where there are no more."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]


def frechet_infinity(features: FeatureSet, keys: np.ndarray, reference: Moments, seed: int) -> float:
    """FD∞ (Chong & Forsyth 2020): the line of FD over 1/N at 15 sizes from n/2 to n, read off at 1/N = 0.

    The subsets are nested: one permutation of the images, each size its first so many. So every image is read once and
    one sum is kept, where independent subsets would read the set a dozen times. Neighbouring sizes share most of their
    images, so the points scatter about the line together and not each by itself; the line's expectation is the same.

    Args:
        features: of the set.
        keys: of its images: the permutation is one of the keys in their order, whatever the shards.
        reference: of the real images.
        seed: of the permutation.
    """
    n = len(features)
    place = np.empty(n, np.int64)
    place[np.argsort(keys, kind="stable")[np.random.default_rng(seed).permutation(n)]] = np.arange(n)
    counts = np.linspace(n / 2, n, EXTRAPOLATION_SIZES).astype(int)
    sums, first, distances = Moments.merged([], features.dim), 0, []
    for count in counts:
        rows = np.flatnonzero((place >= first) & (place < count))
        more = (Moments.of(features.rows(rows[i : i + BLOCK])) for i in range(0, len(rows), BLOCK))
        sums = Moments.merged(chain([sums], more), features.dim)
        distances.append(frechet_distance(sums, reference))
        first = count
    _, intercept = np.polyfit(1 / counts, distances, 1)
    return float(intercept)
