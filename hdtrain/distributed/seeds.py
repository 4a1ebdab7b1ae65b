"""Randomness as a function of (seed, purpose, position) and never of rank, so that any world size draws the same."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.batch import BatchPlan


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed from integers and a word, well mixed (numpy's SeedSequence)."""
    words = [seed, zlib.crc32(purpose.encode()), *position]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *position))


@dataclass(frozen=True)
class Draws:
    """Random numbers for one pass of one step: drawn for the whole global batch, cut to this rank's images.

    Accumulation and world size only change how the batch is cut, so every image meets the same noise.
    """

    seed: int
    step: int
    accumulation_step: int
    rank: int
    plan: BatchPlan
    device: torch.device

    @property
    def _slice(self) -> slice:
        positions = self.plan.positions(self.step, self.accumulation_step, self.rank)
        first = positions.start - self.step * self.plan.global_batch_size
        return slice(first, first + len(positions))

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Float[Tensor, "n ..."]:
        """Standard normal, one array of `shape` an image."""
        source = generator(self.seed, purpose, self.step)
        return torch.randn(self.plan.global_batch_size, *shape, generator=source)[self._slice].to(self.device)

    def integers(self, purpose: str, high: int) -> Int[Tensor, " n"]:
        """Uniform over 0 … high − 1, one an image."""
        source = generator(self.seed, purpose, self.step)
        return torch.randint(high, (self.plan.global_batch_size,), generator=source)[self._slice].to(self.device)

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Float[Tensor, "n ..."]:
        """Uniform over [0, 1), one array of `shape` an image."""
        source = generator(self.seed, purpose, self.step)
        return torch.rand(self.plan.global_batch_size, *shape, generator=source)[self._slice].to(self.device)
