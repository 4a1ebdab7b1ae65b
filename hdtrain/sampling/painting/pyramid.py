"""A tiled TIFF with a level for every halving, as OpenSlide reads it. No torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from jaxtyping import UInt8

from hdtrain.sampling.painting.raw import RawPixels

_SMALLEST_PX = 512
"""No level is made of one that is no larger than this."""
_CLASSIC_BYTES = 3.5e9
"""Offsets of a classic TIFF have 32 bits."""
_BAND_PX = 512


def write_pyramid(
    path: Path,
    pixels: RawPixels,
    scratch: Path,
    *,
    tile_px: int,
    compression: Literal["deflate", "jpeg"],
    jpeg_quality: int,
    mpp: float | None,
) -> list[tuple[int, int]]:
    """Write all levels; return their heights and widths. BigTIFF where it may grow too large for a classic one.

    A level's pixel is the mean of four of the level before, rounded. Levels are held on disk while they are made.

    Args:
        path: of the TIFF, not published yet.
        pixels: the finest level.
        scratch: a folder for the raw levels; they are removed.
        tile_px: height and width of a tile.
        compression: of the tiles; deflate loses nothing.
        jpeg_quality: 1 … 100.
        mpp: micrometres a pixel of the finest level.
    """
    levels = [pixels]
    while max(levels[-1].shape[:2]) > _SMALLEST_PX:
        levels.append(_halved(levels[-1], scratch / f"level-{len(levels)}.raw"))
    options: dict[str, Any] = {"compression": "zlib", "predictor": True}
    if compression == "jpeg":  # in YCbCr
        options = {"compression": "jpeg", "compressionargs": {"level": jpeg_quality}}
    with tifffile.TiffWriter(path, bigtiff=sum(level.size for level in levels) > _CLASSIC_BYTES) as file:
        for number, level in enumerate(levels):
            scale: dict[str, Any] = (
                {"resolution": (1e4 / (mpp * 2**number),) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
            )
            file.write(
                _tiles(level, tile_px),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                subfiletype=int(number > 0),
                metadata=None,
                photometric="rgb",
                software="hdtrain",
                **scale,
                **options,
            )
    for level in levels[1:]:
        level.path.unlink()
    return [(level.shape[0], level.shape[1]) for level in levels]


def _tiles(level: RawPixels, tile_px: int) -> Iterator[UInt8[np.ndarray, "t t 3"]]:
    height, width, _ = level.shape
    for top in range(0, height, tile_px):
        band = level[top : top + tile_px]
        edge = np.pad(band, ((0, tile_px - len(band)), (0, -width % tile_px), (0, 0)), mode="edge")
        for left in range(0, width, tile_px):
            yield np.ascontiguousarray(edge[:, left : left + tile_px])


def _halved(level: RawPixels, path: Path) -> RawPixels:
    height, width, _ = level.shape
    half = RawPixels(path, ((height + 1) // 2, (width + 1) // 2, 3))
    half.make()
    for top in range(0, height, _BAND_PX):
        band = level[top : top + _BAND_PX].astype(np.uint16)
        even = np.pad(band, ((0, len(band) % 2), (0, width % 2), (0, 0)), mode="edge")
        quads = even.reshape(len(even) // 2, 2, -1, 2, 3).sum(axis=(1, 3))
        half.write(top // 2, ((quads + 2) // 4).astype(np.uint8))
    return half
