"""One unit's images to one shard, losslessly; images are encoded and written while the next ones are made."""

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdtrain.formats.shards import ShardWriter
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import Unit

Seen = Callable[[list[int], np.ndarray], None]
"""Told of every batch: indices, uint8 NHWC images."""


def encode_png(image: np.ndarray) -> bytes:
    """uint8 HWC RGB to PNG; JPEG would move FID."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_unit(
    source: ImageGenerator,
    unit: Unit,
    path: Path,
    classes: list[str] | None,
    common: dict[str, Any],
    seen: Seen,
    writer: str = "",
) -> None:
    """Generate and publish one shard; a kill leaves nothing of it behind.

    Args:
        source: makes the images.
        unit: which.
        path: of the shard.
        classes: by label; None: the images have no labels.
        common: what every sample says of how it was made.
        seen: told of every batch once it is made; what it raises ends the unit, and nothing is published.
        writer: of `ShardWriter`.
    """
    seed = source.config.seed

    def add(indices: list[int], images: np.ndarray) -> None:
        for index, image in zip(indices, images, strict=True):
            label = source.label(index) if classes else None
            meta = {"key": f"syn{seed}-{index:09d}", "index": index, "seed": seed, "split": "synthetic", **common}
            meta |= source.origin(index)
            if classes and label is not None:
                meta |= {"label": classes[label], "class_index": label}
            shard.add(meta["key"], "png", encode_png(image), meta, label)

    with ShardWriter(path, writer) as shard, ThreadPoolExecutor(1) as thread:
        written: Future[None] | None = None
        for indices, images in source.batches(unit):
            seen(indices, images)
            if written:
                written.result()
            written = thread.submit(add, indices, images)
        if written:
            written.result()
