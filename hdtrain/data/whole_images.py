"""Images of a shard, every one once and in order; broken ones are counted and left out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from hdtrain.data.broken import BrokenSamples
from hdtrain.data.decode import Resize, decode_rgb, fit
from hdtrain.data.prefetch import Prefetcher
from hdtrain.data.threads import Threads
from hdtrain.errors import DataError
from hdtrain.formats.shards import ShardReader


@dataclass(frozen=True)
class WholeImage:
    """One sample."""

    key: str
    label: int | None
    pixels: UInt8[np.ndarray, "h w 3"]


def iterate_whole(
    reader: ShardReader,
    batch_size: int,
    threads: int,
    broken: BrokenSamples,
    resolution: int | None = None,
    resize: Resize = "squash",
) -> Iterator[list[WholeImage]]:
    """Lists of up to `batch_size` images; a list is shorter by those of its samples that are broken.

    Args:
        reader: of the shard.
        batch_size: images at once.
        threads: that decode.
        broken: counts them.
        resolution: pixels a side that images are brought to; None: they stay as they are.
        resize: how.

    Raises:
        DataError: more broken images than `broken` takes.
        ShardError: the shard is missing, damaged or cannot be read.
    """
    sidecar, workers = reader.sidecar, Threads(threads)

    def load(part: range) -> list[WholeImage]:
        images: list[WholeImage | None] = [None] * len(part)

        def decode(i: int) -> None:
            key, label = sidecar.keys[part[i]], sidecar.labels[part[i]]
            try:
                pixels = decode_rgb(reader.image(part[i]))
                images[i] = WholeImage(key, label, fit(pixels, resolution, resize) if resolution else pixels)
            except DataError as error:
                broken.add(reader.path, key, error)

        workers.each(decode, len(part))
        return [image for image in images if image is not None]

    parts = [range(i, min(i + batch_size, sidecar.samples)) for i in range(0, sidecar.samples, batch_size)]
    try:
        yield from (images for images in Prefetcher(load, parts) if images)
    finally:
        workers.close()
