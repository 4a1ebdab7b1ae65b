"""Published image data sets of any size, drawn fast: a colour of the class, a smooth pattern and noise, as PNG."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hdtrain.formats.atomic import canonical_json, sha256_bytes
from hdtrain.formats.manifest import FieldSpec, Manifest, publish
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, is_complete, shard_entry
from hdtrain.progress import Progress

CLASSES = ["adipose", "lymph", "stroma", "tumour"]
COLOURS = np.array([[235, 215, 230], [120, 80, 160], [230, 160, 190], [170, 100, 170]], np.float32)
SIZE_PX, PATTERN_PX = 32, 4
PER_SHARD = 1000


def draw(labels: np.ndarray, rng: np.random.Generator) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Images of their classes."""
    n, scale = len(labels), SIZE_PX // PATTERN_PX
    pattern = rng.normal(0, 25, (n, PATTERN_PX, PATTERN_PX, 3)).astype(np.float32)
    fine = rng.normal(0, 6, (n, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    images = COLOURS[labels][:, None, None] + pattern.repeat(scale, axis=1).repeat(scale, axis=2) + fine
    return np.clip(images, 0, 255).astype(np.uint8)


def publish_drawn(directory: Path, num_images: int, split: str, seed: int) -> Path:
    """A data set of so many images, classes in turn; one that is there already is left as it is."""
    if RunDir(directory).manifest.exists():
        return directory
    starts, paths = range(0, num_images, PER_SHARD), []
    with Progress(f"drawing {directory.name}", num_images) as progress:
        for number, first in enumerate(starts):
            path = RunDir(directory).shards / f"shard-{number:06d}.tar"
            numbers = np.arange(first, min(first + PER_SHARD, num_images))
            if not is_complete(path):
                _write(path, numbers, split, np.random.default_rng([seed, number]))
            paths.append(path)
            progress.update(len(numbers))
    about = {"num_images": num_images, "split": split, "seed": seed}
    manifest = Manifest(
        kind="images",
        stage="shard",
        fingerprint=sha256_bytes(canonical_json(about)),
        commit="drawn",
        fields={"image": FieldSpec(dtype="uint8", shape=[SIZE_PX, SIZE_PX, 3], range=(0, 255), layout="HWC RGB")},
        shards=[shard_entry(path, directory) for path in paths],
        split=split,
        classes=CLASSES,
        info=about,
    )
    publish(directory, manifest)
    return directory


def _write(path: Path, numbers: np.ndarray, split: str, rng: np.random.Generator) -> None:
    labels = numbers % len(CLASSES)
    with ShardWriter(path) as writer:
        for number, label, image in zip(numbers.tolist(), labels.tolist(), draw(labels, rng), strict=True):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG", compress_level=1)
            writer.add(f"{split}-{number:08d}", "png", stream.getvalue(), {"seed": number}, label)
