"""What is packed and read: real image patches as 256×256 JPEGs, with class and metadata."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json

SIDE_PX = 256
QUALITY = 95
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DISTINCT = 512
"""Patches that differ; a longer benchmark takes them again under other keys."""


@dataclass(frozen=True)
class Sample:
    """One sample as bytes. `meta` is what `json` says."""

    key: str
    jpg: bytes
    cls: bytes
    json: bytes
    meta: dict[str, Any]
    label: int

    def members(self, exts: Sequence[str] = ("jpg", "cls", "json")) -> dict[str, bytes]:
        """Member name to content, in the order of the archive."""
        return {f"{self.key}.{ext}": getattr(self, ext) for ext in exts}


def patches(data: Path | None, num: int, seed: int) -> list[np.ndarray]:
    """`num` patches, or as many as differ up to `DISTINCT`: uint8 RGB (256, 256, 3).

    From the images below `data`: larger ones are cut, smaller ones enlarged. Without it: crops at random places of the
    stained section that scikit-image ships.

    Raises:
        DataError: no image below `data`.
    """
    rng = np.random.default_rng(seed)
    num = min(num, DISTINCT)
    if data is None:
        from skimage.data import immunohistochemistry

        section = immunohistochemistry()
        corners = rng.integers(0, np.array(section.shape[:2]) - SIDE_PX + 1, (num, 2))
        return [np.ascontiguousarray(section[y : y + SIDE_PX, x : x + SIDE_PX]) for y, x in corners]
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"no image ({' '.join(SUFFIXES)}) below {data}; give --data another folder or leave it out")
    found: list[np.ndarray] = []
    for place in rng.permutation(len(files)):
        found += _cut(files[place])
        if len(found) >= num:
            break
    return found[:num]


def _cut(file: Path) -> Iterator[np.ndarray]:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if min(image.size) < SIDE_PX:
        image = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    for top in range(0, pixels.shape[0] - SIDE_PX + 1, SIDE_PX):
        for left in range(0, pixels.shape[1] - SIDE_PX + 1, SIDE_PX):
            yield np.ascontiguousarray(pixels[top : top + SIDE_PX, left : left + SIDE_PX])


def pil_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG by Pillow, quality 95, chroma 4:2:0 (its default)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def make_samples(images: Sequence[np.ndarray], num: int) -> list[Sample]:
    """`num` samples with metadata as `hdtrain shard` writes it; the images take turns."""
    encoded = [pil_jpeg(image) for image in images]
    return [_sample(number, encoded[number % len(encoded)]) for number in range(num)]


def _sample(number: int, jpg: bytes) -> Sample:
    key, label = f"bench_slide{number % 40:02d}_{number:08d}", number % 9
    meta = {
        "key": key,
        "source": "bench",
        "slide": f"slide{number % 40:02d}",
        "patient": f"patient{number % 20:02d}",
        "x": number % 100 * SIDE_PX,
        "y": number // 100 * SIDE_PX,
        "mpp": 0.5,
        "label": f"CLASS{label}",
        "class_index": label,
        "split": "train",
        "width": SIDE_PX,
        "height": SIDE_PX,
    }
    return Sample(key, jpg, b"%d" % label, canonical_json(meta), meta, label)
