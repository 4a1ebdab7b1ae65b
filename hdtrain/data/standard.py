"""Mean and standard deviation of every feature over a corpus, the same bits for any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.world import World

PARTS = 64


@dataclass(frozen=True)
class Standard:
    """(x − mean) / std; a feature that never varies is divided by 1."""

    mean: Float32[np.ndarray, " d"]
    std: Float32[np.ndarray, " d"]

    def apply(self, x: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """Standardised."""
        standardised: np.ndarray = (x - self.mean) / self.std
        return standardised

    def undo(self, x: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """As they were."""
        raw: np.ndarray = x * self.std + self.mean
        return raw

    @classmethod
    def of(cls, count: float, total: Float64[np.ndarray, " d"], squares: Float64[np.ndarray, " d"]) -> "Standard":
        """From the sums of x and x²."""
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        varies = variance > 1e-12 * np.maximum(mean**2, 1e-12)
        return cls(mean.astype(np.float32), np.sqrt(np.where(varies, variance, 1)).astype(np.float32))


def measure(groups: int, dim: int, vectors: Callable[[int], Float32[np.ndarray, "n d"]]) -> Standard:
    """Over the vectors of all groups. A collective: ranks share `PARTS` sets of groups, summed in their order.

    Args:
        groups: how many there are.
        dim: features of a vector.
        vectors: of a group.
    """
    sums = np.zeros((PARTS, 2 * dim + 1))
    for part in World.from_environment().share(range(PARTS)):
        for group in range(part, groups, PARTS):
            x = vectors(group).astype(np.float64)
            sums[part, 0] += len(x)
            sums[part, 1 : dim + 1] += x.sum(0)
            sums[part, dim + 1 :] += (x**2).sum(0)
    total = np.zeros(2 * dim + 1)
    for part in all_reduce_sum(torch.from_numpy(sums).to(device())).cpu().numpy():
        total += part
    return Standard.of(total[0], total[1 : dim + 1], total[dim + 1 :])
