"""Who sees which sample when: a function of (seed, epoch, shard sizes) alone.

An epoch permutes the shards, reads them in blocks, and permutes the samples inside a block. A *position* counts images
since the start of training, over epochs; ranks, workers and resuming only choose which positions they ask for.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from hdtrain.errors import DataError

Positions = range | Sequence[int] | np.ndarray
Places = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]
"""Shard and sample in it, for each position."""


class Order(Protocol):
    """What a reader asks of an order."""

    @property
    def epoch_size(self) -> int:
        """Samples in all shards."""
        ...

    def locate(self, positions: Positions) -> Places:
        """Shard and sample at each position."""
        ...

    def shards_from(self, position: int) -> list[int]:
        """The shards that `position` is read from, then those that are needed next."""
        ...

    def seen(self, num_positions: int) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard at the positions before `num_positions`, repeats counted."""
        ...


class SampleOrder:
    """Maps positions to (shard, sample). An epoch is never held in memory, only the blocks in use."""

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, seed: int, block_shards: int):
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.seed, self.block_shards = seed, block_shards
        self.epoch_size = int(self.sizes.sum())
        if self.epoch_size == 0:
            raise DataError("the data set has no samples")
        self._epoch = lru_cache(maxsize=3)(self._make_epoch)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shard order, and the position in the epoch at which each block ends."""
        shards = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[shards])
        last = np.minimum(np.arange(self.block_shards, len(shards) + self.block_shards, self.block_shards), len(shards))
        return shards, ends[last - 1]

    def _make_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The block's shards, where each ends when they are laid end to end, and the permutation of those samples."""
        shards = self._shards_of(epoch, block)
        ends = np.cumsum(self.sizes[shards])
        return shards, ends, np.random.Generator(np.random.PCG64([self.seed, epoch, block])).permutation(ends[-1])

    def _shards_of(self, epoch: int, block: int) -> np.ndarray:
        shards, _ = self._epoch(epoch)
        return shards[block * self.block_shards : (block + 1) * self.block_shards]

    def locate(self, positions: Positions) -> Places:
        """Shard and sample at each position."""
        wanted = as_positions(positions)
        shards, samples = np.empty_like(wanted), np.empty_like(wanted)
        epochs, offsets = np.divmod(wanted, self.epoch_size)
        for epoch, in_epoch in groups(epochs):
            block_ends = self._epoch(epoch)[1]
            blocks = np.searchsorted(block_ends, offsets[in_epoch], side="right")
            for block, in_block in groups(blocks):
                rows = in_epoch[in_block]
                members, ends, permutation = self._block(epoch, block)
                start = block_ends[block - 1] if block else 0
                place = permutation[offsets[rows] - start]
                which = np.searchsorted(ends, place, side="right")
                shards[rows] = members[which]
                samples[rows] = place - (ends[which] - self.sizes[members[which]])
        return shards, samples

    def shards_from(self, position: int) -> list[int]:
        """The shards of the block that holds `position`, then those of the block after it."""
        epoch, offset = divmod(position, self.epoch_size)
        ends = self._epoch(epoch)[1]
        block = int(np.searchsorted(ends, offset, side="right"))
        following = (epoch, block + 1) if ends[block] < self.epoch_size else (epoch + 1, 0)
        found: list[int] = np.concatenate([self._shards_of(epoch, block), self._shards_of(*following)]).tolist()
        return list(dict.fromkeys(found))

    def seen(self, num_positions: int) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard at the positions before `num_positions`, repeats counted."""
        epoch, offset = divmod(num_positions, self.epoch_size)
        counts = self.sizes * epoch
        if offset:
            shards, ends = self._epoch(epoch)
            block = int(np.searchsorted(ends, offset, side="right"))
            whole = shards[: block * self.block_shards]
            counts[whole] += self.sizes[whole]
            begun = range(epoch * self.epoch_size + (int(ends[block - 1]) if block else 0), num_positions)
            counts += np.bincount(self.locate(begun)[0], minlength=len(counts))
        return counts


def as_positions(positions: Positions) -> Int64[np.ndarray, " n"]:
    """`positions` as an array."""
    if isinstance(positions, range):
        return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    return np.asarray(positions, dtype=np.int64)


def groups(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every distinct value, rising, and the indices at which it stands."""
    if len(values) == 0:
        return
    if values[0] == values[-1] and (values == values[0]).all():  # nearly always, and ten times cheaper
        yield int(values[0]), np.arange(len(values))
        return
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, first[1:]), strict=True)
