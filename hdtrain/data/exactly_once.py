"""Image shards one after the other, every sample once and in its shard's order, for `encode`, `select`, `evaluate`.

Which shards a rank takes is its caller's business. What a shard gives depends on nothing but the shard.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hdtrain.config.training import ShardAccess
from hdtrain.data.broken import BrokenSamples
from hdtrain.data.decode import Resize, decode_into, decode_rgb
from hdtrain.data.images import ImageBatch
from hdtrain.data.pool import UNLABELLED, OpenShard, ShardPool
from hdtrain.data.prefetch import Prefetcher
from hdtrain.data.threads import Threads
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader


def iterate_shard(
    reader: ShardReader,
    batch_size: int,
    resolution: int,
    resize: Resize = "squash",
    threads: int = 2,
    broken: BrokenSamples | None = None,
) -> Iterator[ImageBatch]:
    """Every sample of one shard, in order, once; the next batches are read while one is used.

    Args:
        reader: the shard.
        batch_size: samples that are read together; a batch with a broken one is smaller.
        resolution: of the images.
        resize: how they are brought to it.
        threads: that decode.
        broken: takes the samples that cannot be decoded; None: the caller needs every sample.

    Raises:
        DataError: an image cannot be decoded and `broken` is None, or takes no more; names shard and key.
        ShardError: the shard is missing, damaged or cannot be read.
    """
    sidecar, workers = reader.sidecar, Threads(threads)
    labels = np.array([UNLABELLED if label is None else label for label in sidecar.labels], np.int64)

    def load(part: range) -> ImageBatch:
        images = np.empty((len(part), resolution, resolution, 3), np.uint8)
        whole = np.ones(len(part), bool)

        def decode(i: int) -> None:
            try:
                decode_into(reader.image(part[i]), images[i], resize)
            except DataError as error:
                if broken is None:
                    raise _needs_all(reader, part[i], error) from None
                broken.add(reader.path, sidecar.keys[part[i]], error)
                whole[i] = False

        workers.each(decode, len(part))
        keys = [sidecar.keys[i] for i, good in zip(part, whole, strict=True) if good]
        return ImageBatch(images if whole.all() else images[whole], keys, labels[part.start : part.stop][whole])

    starts = range(0, sidecar.samples, batch_size)
    parts = [range(first, min(first + batch_size, sidecar.samples)) for first in starts]
    try:
        yield from (batch for batch in Prefetcher(load, parts) if batch.keys)
    finally:
        workers.close()


def decode_sample(reader: ShardReader, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """One image at its own size, for a caller that needs every sample.

    Raises:
        DataError: it cannot be decoded; names shard and key.
    """
    try:
        return decode_rgb(reader.image(index))
    except DataError as error:
        raise _needs_all(reader, index, error) from None


def _needs_all(reader: ShardReader, index: int, error: DataError) -> DataError:
    return DataError(
        f"{reader.path}: {reader.sidecar.keys[index]}: {error}; this stage needs every image of the data set: find the "
        "broken ones with `hdtrain verify` and make the data set again without them"
    )


class ShardByShard:
    """The shards of data sets by number, of which a rank works through its share.

    Args:
        datasets: run directories with their manifests.
        access: where shards lie that are not in them.
    """

    def __init__(self, datasets: Sequence[tuple[Path, Manifest]], access: ShardAccess):
        self._pool = ShardPool(datasets, access, 1, ShardReader)
        self.samples = [entry.samples for _, entry in self._pool.places]

    def __len__(self) -> int:
        return len(self.samples)

    def each(self, numbers: Sequence[int]) -> Iterator[tuple[int, OpenShard[ShardReader]]]:
        """Number and shard, one after the other; remote ones are downloaded while those before them are in use.

        Raises:
            ShardError: one is missing, damaged, or cannot be downloaded.
        """
        for turn, number in enumerate(numbers):
            self._pool.fetch_ahead(numbers[turn : turn + 2])
            with self._pool.use(number) as shard:
                yield number, shard
