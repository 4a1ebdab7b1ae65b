"""Latent shards as batches: posterior mean and std as memory maps, gathered at any positions of one order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from hdtrain.data.images import UNLABELLED
from hdtrain.data.order import SampleOrder
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import RecordReader


@dataclass(frozen=True)
class LatentBatch:
    """Posterior mean and std of the unscaled latent, with one key and label each (−1: unlabelled)."""

    mean: Float32[np.ndarray, "n c h w"]
    std: Float32[np.ndarray, "n c h w"]
    keys: list[str]
    labels: Int64[np.ndarray, " n"]


class TrainingLatents:
    """One published latent data set at any positions of its order."""

    def __init__(self, directory: Path, manifest: Manifest, seed: int, block_shards: int = 8):
        self.shards = [RecordReader(directory / shard.name) for shard in manifest.shards]
        self.order = SampleOrder([shard.samples for shard in manifest.shards], seed, block_shards)
        self._arrays: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def _record(self, shard: int, sample: int) -> np.ndarray:
        if shard not in self._arrays:
            arrays = self.shards[shard].arrays()
            self._arrays[shard] = arrays, np.cumsum([len(array) for array in arrays])
        arrays, ends = self._arrays[shard]
        member = int(np.searchsorted(ends, sample, side="right"))
        start = int(ends[member - 1]) if member else 0
        return arrays[member][sample - start]

    def batch(self, positions: range) -> LatentBatch:
        """The latents at `positions`."""
        located = self.order.locate(positions)
        records = np.stack([self._record(shard, sample) for shard, sample in located]).astype(np.float32)
        sidecars = [(self.shards[shard].sidecar, sample) for shard, sample in located]
        labels = [UNLABELLED if sidecar.labels[i] is None else sidecar.labels[i] for sidecar, i in sidecars]
        keys = [sidecar.keys[i] for sidecar, i in sidecars]
        return LatentBatch(records[:, 0], records[:, 1], keys, np.array(labels, np.int64))
