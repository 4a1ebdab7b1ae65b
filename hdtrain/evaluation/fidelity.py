"""Embedding fidelity: how near images are to the embedding that was asked for, and how well it is found again.

The cosine of two embeddings is taken token by token and averaged. The source's rank among the candidates is by that
cosine, ties counted half; its percentile is 0 where the source is nearest and 1 where it is farthest, 0.5 by chance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from hdtrain.evaluation.statistics import LEVEL, interval_of
from hdtrain.formats.results import Metric

_BLOCK = 512
"""Images whose cosines to all candidates are in memory at once."""


@dataclass(frozen=True)
class Retrieval:
    """For each image; percentiles and cosines in float64."""

    cosine: Float[np.ndarray, " n"]
    """To what was asked for."""
    cosine_to_others: Float[np.ndarray, " n"]
    """Mean, to all other candidates."""
    percentile: Float[np.ndarray, " n"]
    """Of the source's rank."""
    nearest: Int64[np.ndarray, " n"]
    """The candidate that is nearest, the source itself left out."""


def normalised(tokens: np.ndarray) -> Float32[np.ndarray, "n k"]:
    """(n, t, d) to rows whose inner product is the mean over tokens of the cosines; a token of zeros has cosine 0."""
    exact = tokens.astype(np.float64)
    length = np.linalg.norm(exact, axis=-1, keepdims=True)
    unit = exact / np.where(length == 0, 1, length) / np.sqrt(tokens.shape[1])
    return unit.reshape(len(tokens), -1).astype(np.float32)


def retrieve(
    made: Float32[np.ndarray, "n k"], candidates: Float32[np.ndarray, "m k"], sources: Int64[np.ndarray, " n"]
) -> Retrieval:
    """Look for every image's source.

    Args:
        made: of the images, from `normalised`.
        candidates: embeddings of real images, likewise; at least two.
        sources: of each image the row of `candidates` that it was made from.
    """
    count, others = len(made), len(candidates) - 1
    found = Retrieval(np.empty(count), np.empty(count), np.empty(count), np.empty(count, np.int64))
    for first in range(0, count, _BLOCK):
        part = slice(first, first + _BLOCK)
        cosines = made[part] @ candidates.T
        rows = np.arange(len(cosines))
        own = cosines[rows, sources[part]]
        ahead = (cosines > own[:, None]).sum(axis=1)
        tied = (cosines == own[:, None]).sum(axis=1) - 1
        found.percentile[part] = (ahead + tied / 2) / others
        found.cosine[part] = own
        found.cosine_to_others[part] = (cosines.sum(axis=1, dtype=np.float64) - own) / others
        cosines[rows, sources[part]] = -np.inf
        found.nearest[part] = cosines.argmax(axis=1)
    return found


@dataclass(frozen=True)
class SourceBootstrap:
    """Means over images with intervals; all images of one source are resampled together.

    Args:
        sources: of each image.
        resamples: how many.
        seed: of the draws.
    """

    sources: Int64[np.ndarray, " n"]
    resamples: int
    seed: int

    def metric(self, values: Float[np.ndarray, " n"], of: np.ndarray | None = None) -> Metric:
        """The mean of `values`, or of those images for which `of` is true."""
        chosen = np.ones(len(values), bool) if of is None else of
        _, group = np.unique(self.sources[chosen], return_inverse=True)
        sums, counts = np.bincount(group, values[chosen].astype(np.float64)), np.bincount(group)
        rng = np.random.default_rng(self.seed)
        drawn = rng.integers(len(sums), size=(self.resamples, len(sums)))
        resampled = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        return Metric(
            value=float(values[chosen].mean()),
            interval=interval_of(resampled) if len(sums) > 1 else None,
            n=int(chosen.sum()),
            method=f"mean over images; {LEVEL:.0%} bootstrap over {len(sums)} sources, {self.resamples} resamples",
        )
