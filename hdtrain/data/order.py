"""Who sees which sample when: a function of (seed, epoch, shard sizes) alone.

An epoch permutes the shards, reads them in blocks, and permutes the samples inside a block. A *position* counts images
since the start of training, over epochs; ranks, workers and resuming only choose which positions they ask for.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from hdtrain.errors import DataError


class SampleOrder:
    """Maps positions to (shard, sample). An epoch is never held in memory, only the blocks in use."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, block_shards: int):
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.seed, self.block_shards = seed, block_shards
        self.epoch_size = int(self.sizes.sum())
        if self.epoch_size == 0:
            raise DataError("the data set has no samples")
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shard order, and the position in the epoch at which each block ends."""
        shards = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[shards])
        last = np.minimum(np.arange(self.block_shards, len(shards) + self.block_shards, self.block_shards), len(shards))
        return shards, ends[last - 1]

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        """The block's samples in reading order, rows (shard, sample)."""
        shards, _ = self._epoch(epoch)
        members = shards[block * self.block_shards : (block + 1) * self.block_shards]
        rows = np.concatenate(
            [np.stack([np.full(self.sizes[s], s), np.arange(self.sizes[s])], axis=1) for s in members]
        )
        return np.random.Generator(np.random.PCG64([self.seed, epoch, block])).permutation(rows, axis=0)

    def locate(self, positions: Iterable[int]) -> list[tuple[int, int]]:
        """(shard, sample) at each position."""
        found = []
        for position in positions:
            epoch, offset = divmod(position, self.epoch_size)
            _, ends = self._epoch(epoch)
            block = int(np.searchsorted(ends, offset, side="right"))
            start = int(ends[block - 1]) if block else 0
            shard, sample = self._block(epoch, block)[offset - start]
            found.append((int(shard), int(sample)))
        return found
