"""Image shards as batches of uint8: in training order for training, shard by shard for exactly-once stages."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from hdtrain.config.training import ReaderConfig
from hdtrain.data.decode import Resize, decode_rgb, fit
from hdtrain.data.order import SampleOrder
from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader, open_shards

UNLABELLED = -1


@dataclass(frozen=True)
class ImageBatch:
    """Images uint8 RGB 0..255 NHWC, one key and label each (−1: unlabelled)."""

    images: UInt8[np.ndarray, "n h w 3"]
    keys: list[str]
    labels: Int64[np.ndarray, " n"]
    is_copy: Bool[np.ndarray, " n"] | None = None
    """Which samples are the data set's copies, to be augmented; None where there are no copies."""


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


class TrainingImages:
    """Published image data sets, read as one, at any positions of one order; `copies` appends them again."""

    def __init__(self, datasets: Sequence[tuple[Path, Manifest]], config: ReaderConfig, seed: int, copies: int = 0):
        self.shards: list[ShardReader] = [s for path, manifest in datasets for s in open_shards(path, manifest)]
        self.sizes = [entry.samples for _, manifest in datasets for entry in manifest.shards]
        self.order = SampleOrder(self.sizes * (1 + copies), seed, config.block_shards)
        self.config = config
        self.broken: dict[tuple[int, int], str] = {}
        self._pool = ThreadPoolExecutor(config.threads, "decode")
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        size = config.resolution
        num_samples = int(self._starts[-1])
        fits = num_samples * size * size * 3 <= config.cache_bytes
        self._cache = np.empty((num_samples, size, size, 3), np.uint8) if fits else None
        self._cached = np.zeros(num_samples, bool)

    def batch(self, positions: range) -> ImageBatch:
        """The images at `positions`. A broken one is counted and its neighbour in the order stands in for it.

        Raises:
            DataError: more broken images than `max_failed_share` of the data set.
        """
        located = self.order.locate(positions)
        images = list(self._pool.map(self._load, located))
        for i, image in enumerate(images):
            shift = 0
            while image is None:
                shift += 1
                located[i] = self.order.locate([positions[i] + shift])[0]
                image = self._load(located[i])
            images[i] = image
        is_copy = np.array([shard >= len(self.shards) for shard, _ in located])
        sidecars = [self.shards[shard % len(self.shards)].sidecar for shard, _ in located]
        keys = [sidecar.keys[sample] for sidecar, (_, sample) in zip(sidecars, located, strict=True)]
        labels = [sidecar.labels[sample] for sidecar, (_, sample) in zip(sidecars, located, strict=True)]
        return ImageBatch(
            np.stack([image for image in images if image is not None]),
            keys,
            np.array([UNLABELLED if label is None else label for label in labels], np.int64),
            is_copy,
        )

    def _load(self, place: tuple[int, int]) -> np.ndarray | None:
        shard, sample = place[0] % len(self.shards), place[1]
        row = int(self._starts[shard]) + sample
        if self._cache is not None and self._cached[row]:
            return self._cache[row]
        try:
            image = fit(decode_rgb(self.shards[shard].image(sample)), self.config.resolution, self.config.resize)
        except DataError as error:
            self._count_broken((shard, sample), error)
            return None
        if self._cache is not None:
            self._cache[row], self._cached[row] = image, True
        return image

    def _count_broken(self, place: tuple[int, int], error: DataError) -> None:
        shard, sample = place
        name = f"{self.shards[shard].path}: {self.shards[shard].sidecar.keys[sample]}"
        if place not in self.broken:
            self.broken[place] = str(error)
            print(f"warning: skipped {name}: {error}")
        limit = min(self.config.max_failed_share * len(self._cached), len(self._cached) - 1)  # one must be whole
        if len(self.broken) > limit:
            raise DataError(
                f"{len(self.broken)} broken images of {len(self._cached)}, more than max_failed_share "
                f"{self.config.max_failed_share:g} allows; the last was {name}: {error}; "
                "run `hdtrain verify` on the shards"
            )


def iterate_shard(
    reader: ShardReader, batch_size: int, resolution: int, resize: Resize = "squash", threads: int = 2
) -> Iterator[ImageBatch]:
    """Every sample of one shard, in order, once.

    Raises:
        DataError: an image cannot be decoded; names shard and key.
    """

    def load(sample: int) -> np.ndarray:
        try:
            return fit(decode_rgb(reader.image(sample)), resolution, resize)
        except DataError as error:
            raise DataError(f"{reader.path}: {reader.sidecar.keys[sample]}: {error}") from None

    sidecar = reader.sidecar
    with ThreadPoolExecutor(threads, "decode") as pool:
        for first in range(0, sidecar.samples, batch_size):
            part = range(first, min(first + batch_size, sidecar.samples))
            labels = [UNLABELLED if sidecar.labels[i] is None else sidecar.labels[i] for i in part]
            images = np.stack(list(pool.map(load, part)))
            yield ImageBatch(images, [sidecar.keys[i] for i in part], np.array(labels, np.int64))
