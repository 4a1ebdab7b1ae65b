"""What training on images and training on latents share: data sets read as one, at any positions of one order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic

import numpy as np

from hdtrain.config.training import ShardAccess
from hdtrain.data.mixture import make_order
from hdtrain.data.pool import Reader, ShardPool
from hdtrain.formats.manifest import Manifest


class TrainingShards(Generic[Reader]):
    """Published data sets, their shards numbered through, and the order in which their samples come.

    Args:
        datasets: run directories with their manifests.
        reader: the kind of shard.
        access: where shards lie that are not in the data sets' folders.
        seed: of the order.
        block_shards: shards that are mixed with each other.
        weights: how often each data set is read, beside the others; None: every sample once an epoch.
        copies: how often all shards come again in an epoch; copy c of shard s is number c · shards + s.

    Raises:
        DataError: there are no samples, or the weights do not fit.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Path, Manifest]],
        reader: type[Reader],
        access: ShardAccess,
        seed: int,
        block_shards: int,
        weights: Sequence[float] | None = None,
        copies: int = 0,
    ):
        sizes = [np.array([shard.samples for shard in manifest.shards], np.int64) for _, manifest in datasets]
        self.sizes = np.concatenate(sizes)
        self.order = make_order(sizes, weights, seed, block_shards, copies)
        self.shards = ShardPool(datasets, access, block_shards * (len(datasets) if weights else 1), reader)

    def seen(self, images_seen: int) -> dict[str, int]:
        """How many of the first `images_seen` samples each data set gave, by its folder; repeats and copies count."""
        of_shard = self.order.seen(images_seen).reshape(-1, len(self.sizes)).sum(axis=0)
        counts: dict[str, int] = {}
        for (directory, _), count in zip(self.shards.places, of_shard.tolist(), strict=True):
            counts[str(directory)] = counts.get(str(directory), 0) + count
        return counts

    def _fetch_ahead(self, positions: range) -> None:
        """Let the shards come that `positions` and those after them need, where any lie elsewhere."""
        if self.shards.access.url is not None:
            self.shards.fetch_ahead(shard % len(self.sizes) for shard in self.order.shards_from(positions[-1]))
