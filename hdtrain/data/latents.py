"""Latent shards as batches in the order of training: records read straight into one fp16 array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64

from hdtrain.config.training import ShardAccess
from hdtrain.data.order import groups
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.data.training_shards import TrainingShards
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import RecordReader


@dataclass(frozen=True)
class LatentBatch:
    """Posterior mean and std of the unscaled latent as they are stored, one key and label each (−1: unlabelled)."""

    moments: Float16[np.ndarray, "n 2 c h w"]
    keys: list[str]
    labels: Int64[np.ndarray, " n"]
    tokens: Float16[np.ndarray, "n t d"] | None = None
    """Embeddings, where samples have some."""

    @property
    def mean(self) -> Float32[np.ndarray, "n c h w"]:
        """Posterior mean."""
        return self.moments[:, 0].astype(np.float32)

    @property
    def std(self) -> Float32[np.ndarray, "n c h w"]:
        """Posterior standard deviation."""
        return self.moments[:, 1].astype(np.float32)


class TrainingLatents(TrainingShards[RecordReader]):
    """Published latent data sets, read as one, at any positions of one order.

    Args:
        datasets: run directories with their manifests.
        seed: of the order.
        block_shards: shards that are mixed with each other.
        weights: how often each data set is read, beside the others; None: every latent once an epoch.
        access: where shards lie that are not in the data sets' folders.
        embeddings: that samples are conditioned on; None: none.

    Raises:
        ManifestError: the latents are of different shapes.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Path, Manifest]],
        seed: int,
        block_shards: int = 8,
        weights: Sequence[float] | None = None,
        access: ShardAccess | None = None,
        embeddings: RecordsByKey | None = None,
    ):
        self.embeddings = embeddings
        shapes = {tuple(int(n or 0) for n in manifest.fields["moments"].shape) for _, manifest in datasets}
        if len(shapes) != 1:
            raise ManifestError(f"latents of different shapes cannot be read together: {sorted(shapes)}")
        self.shape = shapes.pop()
        super().__init__(datasets, RecordReader, access or ShardAccess(), seed, block_shards, weights)

    def batch(self, positions: range) -> LatentBatch:
        """The latents at `positions`.

        Raises:
            ShardError: a shard is missing, damaged or cannot be read, and did not come back in `retry_sec`.
            DataError: a latent has no embedding.
        """
        self._fetch_ahead(positions)
        number = len(positions)
        moments = np.empty((number, *self.shape), np.float16)
        keys, labels = [""] * number, np.empty(number, np.int64)
        shards, samples = self.order.locate(positions)
        for shard, rows in groups(shards):
            with self.shards.use(shard) as opened:
                opened.reader.gather(samples[rows], moments, rows)
                labels[rows] = opened.labels[samples[rows]]
                for row, sample in zip(rows.tolist(), samples[rows].tolist(), strict=True):
                    keys[row] = opened.keys[sample]
        return LatentBatch(moments, keys, labels, self.embeddings(keys) if self.embeddings else None)
