"""Images of a shard at their own sizes, every one once and in order; broken ones are counted and left out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from hdtrain.data.broken import BrokenSamples
from hdtrain.data.decode import decode_rgb
from hdtrain.data.prefetch import Prefetcher
from hdtrain.data.threads import Threads
from hdtrain.errors import DataError
from hdtrain.formats.shards import ShardReader


@dataclass(frozen=True)
class WholeImage:
    """One sample as it is stored."""

    key: str
    label: int | None
    pixels: UInt8[np.ndarray, "h w 3"]


def iterate_whole(
    reader: ShardReader, batch_size: int, threads: int, broken: BrokenSamples
) -> Iterator[list[WholeImage]]:
    """Lists of up to `batch_size` images; a list is shorter by those of its samples that are broken.

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
                images[i] = WholeImage(key, label, decode_rgb(reader.image(part[i])))
            except DataError as error:
                broken.add(reader.path, key, error)

        workers.each(decode, len(part))
        return [image for image in images if image is not None]

    parts = [range(i, min(i + batch_size, sidecar.samples)) for i in range(0, sidecar.samples, batch_size)]
    try:
        yield from (images for images in Prefetcher(load, parts) if images)
    finally:
        workers.close()
