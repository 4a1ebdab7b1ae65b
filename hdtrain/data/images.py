"""Image shards as batches of uint8 in the order of training.

Positions come in, images go out: `SampleOrder` or `Mixture` says which sample stands at each position, `ShardPool`
opens the shards, a few threads read and decode each sample straight into its place in one array. Shard by shard, for
the stages that see every sample once: `hdtrain.data.exactly_once`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int64, UInt8

from hdtrain.config.training import ReaderConfig
from hdtrain.data.broken import BrokenSamples
from hdtrain.data.decode import decode_into
from hdtrain.data.pool import UNLABELLED
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.data.threads import Threads
from hdtrain.data.training_shards import TrainingShards
from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader

__all__ = ["UNLABELLED", "ImageBatch", "TrainingImages", "labelled_classes", "shared_classes"]


@dataclass(frozen=True)
class ImageBatch:
    """Images uint8 RGB 0..255 NHWC, one key and label each (−1: unlabelled)."""

    images: UInt8[np.ndarray, "n h w 3"]
    keys: list[str]
    labels: Int64[np.ndarray, " n"]
    is_copy: Bool[np.ndarray, " n"] | None = None
    """Which samples are the data set's copies, to be augmented; None where there are no copies."""
    tokens: Float16[np.ndarray, "n t d"] | None = None
    """Embeddings, where samples have some."""


def shared_classes(datasets: Sequence[tuple[Path, Manifest]]) -> list[str] | None:
    """The class names that all labelled data sets share, in label order; None when none is labelled.

    Raises:
        ManifestError: two data sets list different classes.
    """
    labelled = [(path, manifest.classes) for path, manifest in datasets if manifest.classes]
    for path, classes in labelled[1:]:
        if classes != labelled[0][1]:
            raise ManifestError(
                f"classes differ: {labelled[0][0]} has {', '.join(labelled[0][1] or [])}; "
                f"{path} has {', '.join(classes or [])}"
            )
    return labelled[0][1] if labelled else None


def labelled_classes(datasets: Sequence[tuple[Path, Manifest]]) -> list[str]:
    """The classes of data sets that must all be labelled.

    Raises:
        ManifestError: one has no classes, or the classes differ.
    """
    for path, manifest in datasets:
        if not manifest.classes:
            raise ManifestError(f"{path} is unlabelled; this stage needs class labels")
    return shared_classes(datasets) or []


class TrainingImages(TrainingShards[ShardReader]):
    """Published image data sets, read as one, at any positions of one order; `copies` appends them again.

    Args:
        datasets: run directories with their manifests.
        config: how they are read, and mixed where it has weights.
        seed: of the order.
        copies: how often every image comes again in an epoch, marked as a copy.
        embeddings: that samples are conditioned on; None: none.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Path, Manifest]],
        config: ReaderConfig,
        seed: int,
        copies: int = 0,
        embeddings: RecordsByKey | None = None,
    ):
        self.embeddings = embeddings
        super().__init__(datasets, ShardReader, config, seed, config.block_shards, config.weights, copies)
        self.config = config
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._threads = Threads(config.threads)
        size, num_samples = config.resolution, int(self._starts[-1])
        self.broken = BrokenSamples(num_samples, config.max_failed_share)
        fits = num_samples * size * size * 3 <= config.cache_bytes
        self._cache = np.empty((num_samples, size, size, 3), np.uint8) if fits else None
        self._cached = np.zeros(num_samples if fits else 0, bool)

    def batch(self, positions: range) -> ImageBatch:
        """The images at `positions`. A broken one is counted and its neighbour in the order stands in for it.

        Raises:
            DataError: more broken images than `max_failed_share` of the data set, or one without an embedding.
            ShardError: a shard is missing, damaged or cannot be read, and did not come back in `retry_sec`.
        """
        self._fetch_ahead(positions)
        number, size = len(positions), self.config.resolution
        images = np.empty((number, size, size, 3), np.uint8)
        keys, labels = [""] * number, np.empty(number, np.int64)
        shards, samples = self.order.locate(positions)

        def load(i: int) -> None:
            shift = 0
            while (found := self._load(int(shards[i]), int(samples[i]), images[i])) is None:
                shift += 1
                (shards[i],), (samples[i],) = self.order.locate([positions[i] + shift])
            keys[i], labels[i] = found

        self._threads.each(load, number)
        tokens = self.embeddings(keys) if self.embeddings else None
        return ImageBatch(images, keys, labels, shards >= len(self.sizes), tokens)

    def _load(self, shard: int, sample: int, out: UInt8[np.ndarray, "r r 3"]) -> tuple[str, int] | None:
        """Read and decode one sample into `out`; its key and label, or None where it is broken."""
        shard %= len(self.sizes)  # a copy's original
        row = int(self._starts[shard]) + sample
        with self.shards.use(shard) as opened:
            key, label = opened.keys[sample], int(opened.labels[sample])
            if self._cache is not None and self._cached[row]:
                out[...] = self._cache[row]
                return key, label
            try:
                decode_into(opened.reader.image(sample), out, self.config.resize)
            except DataError as error:
                self.broken.add(opened.reader.path, key, error)
                return None
        if self._cache is not None:
            self._cache[row], self._cached[row] = out, True
        return key, label
