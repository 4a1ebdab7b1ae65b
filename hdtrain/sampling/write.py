"""One unit's images to one shard, losslessly."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdtrain.formats.shards import ShardWriter
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import Unit


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
    progress: Progress,
) -> None:
    """Generate and publish one shard; a kill leaves nothing of it behind."""
    seed = source.config.seed
    with ShardWriter(path) as writer:
        for indices, images in source.batches(unit):
            for index, image in zip(indices, images, strict=True):
                label = source.plan.label(index) if classes else None
                meta = {"key": f"syn{seed}-{index:09d}", "index": index, "seed": seed, "split": "synthetic", **common}
                if classes and label is not None:
                    meta |= {"label": classes[label], "class_index": label}
                writer.add(meta["key"], "png", encode_png(image), meta, label)
            progress.update(len(indices))
