"""Intervals: a hierarchical bootstrap over seeds and test images, paired between arms, and Wilson's for shares.

Every arm sees the same resampled test images. Images are resampled by slide where there are enough slides, else within
their class. Seeds are resampled for every arm by itself, since its runs are independent of other arms' runs.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int64

from hdtrain.formats.results import Metric

LEVEL = 0.95
MIN_CLUSTERS = 10
"""Fewer slides (patients) than this say nothing about the spread between slides."""
BLOCK = 256
Scorer = Callable[[np.ndarray], np.ndarray]
"""Confusion matrices (…, k, k) to figures (…)."""


def interval_of(resampled: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (n ≥ 1)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, shrink = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return max(0.0, low), min(1.0, high)


def share_metric(hits: np.ndarray, method: str) -> Metric:
    """A share with Wilson's interval."""
    interval = wilson_interval(int(hits.sum()), len(hits))
    return Metric(value=float(hits.mean()), interval=interval, n=len(hits), method=f"{method}; Wilson 95 % interval")


def two_sided_p(differences: Float[np.ndarray, " b"]) -> float:
    """Bootstrap p of 'no difference', (1 + count) / (1 + resamples), never 0."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences))))


@dataclass(frozen=True)
class SplitBootstrap:
    """Resamples of one test split. Deterministic in the seed, and the same for every arm."""

    labels: Int64[np.ndarray, " n"]
    groups: np.ndarray
    """Patient or slide of each image, empty where unknown."""
    num_classes: int
    resamples: int
    seed: int

    @cached_property
    def clustered(self) -> bool:
        """Whole slides are resampled, since there are enough of them."""
        return bool((self.groups != "").all()) and len(np.unique(self.groups)) >= MIN_CLUSTERS

    @property
    def method(self) -> str:
        """How, in words."""
        images = "test images by slide" if self.clustered else "test images within class"
        return f"mean over seeds; 95 % bootstrap over seeds and {images}, {self.resamples} resamples"

    @cached_property
    def weights(self) -> Float[np.ndarray, "b n"]:
        """How often each image occurs in each resample."""
        rng = np.random.default_rng([self.seed, 0])
        weights = np.zeros((self.resamples, len(self.labels)), np.float32)
        if self.clustered:
            _, group_of = np.unique(self.groups, return_inverse=True)
            count = int(group_of.max()) + 1
            return rng.multinomial(count, np.full(count, 1 / count), self.resamples)[:, group_of].astype(np.float32)
        for label in np.unique(self.labels):
            own = np.flatnonzero(self.labels == label)
            weights[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), self.resamples)
        return weights

    def confusions(self, predictions: Int64[np.ndarray, "s n"]) -> Float[np.ndarray, "s b k k"]:
        """The confusion matrix of every seed in every resample."""
        k = self.num_classes
        out = np.zeros((len(predictions), self.resamples, k * k))
        rows = np.arange(len(self.labels))
        for s, predicted in enumerate(predictions):
            onehot = np.zeros((len(self.labels), k * k), np.float32)
            onehot[rows, self.labels * k + predicted] = 1
            out[s] = self.weights @ onehot
        return out.reshape(len(predictions), self.resamples, k, k)

    def seed_weights(self, num_seeds: int, arm: str) -> Float[np.ndarray, "s b"]:
        """Share of each seed in each resample, drawn with replacement; the arm's name keeps the arms' draws apart."""
        rng = np.random.default_rng([self.seed, 1, zlib.crc32(arm.encode())])
        return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), self.resamples).T / num_seeds


@dataclass(frozen=True)
class ArmBootstrap:
    """One arm's predictions under the resamples."""

    test: SplitBootstrap
    predictions: Int64[np.ndarray, "s n"]
    arm: str

    @cached_property
    def _confusions(self) -> np.ndarray:
        return self.test.confusions(self.predictions)

    def resampled(self, scorer: Scorer) -> Float[np.ndarray, " b"]:
        """The figure in every resample, averaged over the resample's seeds."""
        scores = scorer(self._confusions)
        weights = self.test.seed_weights(len(self.predictions), self.arm)
        return np.asarray((scores * weights).sum(axis=0))
