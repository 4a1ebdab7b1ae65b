"""Slides made on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from sharding.slides import SlideReaderName
from sharding.slides.base import Slide

Pixels = NDArray[np.uint8]
REAL = ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"]
"""JPEG and JPEG 2000."""
BOTH: list[SlideReaderName] = ["tifffile", "openslide"]
SIDE = 64


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colour noise: no two regions are the same, and resampling shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3)).astype(np.float64)
    fine = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width] + generator.normal(0, 20, (height, width, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


def write_slide(path: Path, *levels: Pixels, subifds: bool = False, **options: Any) -> Path:
    """A pyramid as a tiled TIFF: a page a level (as OpenSlide reads it), or the lower levels in SubIFDs."""
    options = {"tile": (SIDE, SIDE), "photometric": "rgb", "compression": "zlib", "metadata": None} | options
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            inside = {"subifds": len(levels) - 1} if subifds and index == 0 else {}
            writer.write(level, subfiletype=int(index > 0), **inside, **options)
    return path


def resolution(mpp: float) -> dict[str, Any]:
    """TIFF tags that say it."""
    return {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}


def segment(path: Path, index: int, level: int = 0) -> tuple[int, int]:
    """Offset and size of one segment in the file."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.series[0].levels[level].keyframe
        return page.dataoffsets[index], page.databytecounts[index]


def damage(path: Path, indices: Sequence[int], level: int = 0, fill: Callable[[int], bytes] = bytes) -> Path:
    """Overwrite segments with zeros (or what `fill` makes)."""
    data = bytearray(path.read_bytes())
    for index in indices:
        offset, size = segment(path, index, level)
        data[offset : offset + size] = fill(size)
    path.write_bytes(data)
    return path


def difference(one: Pixels, other: Pixels) -> NDArray[Any]:
    """How far apart, by pixel and channel."""
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


def whole(slide: Slide, level: int = 0) -> Pixels:
    """A whole level."""
    return slide.read(0, 0, slide.levels[level].width, slide.levels[level].height, level)
