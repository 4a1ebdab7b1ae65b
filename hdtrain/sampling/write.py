"""One unit's images to one shard, losslessly; images are encoded and written while the next ones are made."""

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdtrain.errors import ShardError
from hdtrain.formats.shards import ShardReader, ShardWriter, is_complete, sidecar_path
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import Unit

Seen = Callable[[list[int], np.ndarray], None]
"""Told of every batch: indices, uint8 NHWC images (none of those that an earlier attempt has made)."""


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
    begun: Path | None = None,
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
        begun: where the images go that are made when `seen` raises SystemExit, and come from the next time; None: they
            are dropped.
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

    with ShardWriter(path, writer) as shard:
        there = _copy(begun, shard, source.config.batch_size) if begun else 0
        if there:
            seen(list(unit.indices[:there]), np.empty(0, np.uint8))
        stop = _generate(source, replace(unit, indices=unit.indices[there:]), add, seen)
        if stop and begun is None:
            raise stop
        if stop and begun:
            shard.path = begun
    if stop:
        raise stop
    if begun:
        for file in (begun, sidecar_path(begun)):
            file.unlink(missing_ok=True)


def _generate(source: ImageGenerator, unit: Unit, add: Seen, seen: Seen) -> SystemExit | None:
    """All images of a unit, added by a thread; or up to the batch at which `seen` raised what is returned."""
    stop: SystemExit | None = None
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread:
        for indices, images in source.batches(unit):
            try:
                seen(indices, images)
            except SystemExit as error:
                stop = error
            if written:
                written.result()
            written = thread.submit(add, indices, images)
            if stop:
                break
        if written:
            written.result()
    return stop


def _copy(begun: Path, shard: ShardWriter, batch_size: int) -> int:
    """How many samples there are of another shard; from the first batch that cannot be read they are made again."""
    if not is_complete(begun):
        return 0
    reader = ShardReader(begun)
    with contextlib.suppress(ShardError), contextlib.closing(reader):
        sidecar = reader.sidecar
        for first in range(0, len(sidecar.keys), batch_size):
            batch = range(first, min(first + batch_size, len(sidecar.keys)))
            for i, image, meta in [(i, reader.image(i), reader.meta(i)) for i in batch]:
                shard.add(sidecar.keys[i], sidecar.exts[i], image, meta, sidecar.labels[i])
    return shard.sidecar.samples
