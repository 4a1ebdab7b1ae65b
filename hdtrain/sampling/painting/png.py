"""A PNG written row by row, whatever its size. No torch."""

import struct
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np
from jaxtyping import UInt8

_SUB = 1
"""The filter: every value less that of the pixel before it."""


def write_png(
    stream: IO[bytes], bands: Iterable[UInt8[np.ndarray, "h w 3"]], height: int, width: int, mpp: float | None
) -> None:
    """8-bit RGB; resolution in pHYs where it is known.

    Args:
        stream: to write to.
        bands: rows from the top on, `height` in all.
        height: of the image.
        width: of the image.
        mpp: micrometres a pixel.
    """
    stream.write(b"\x89PNG\r\n\x1a\n")
    _chunk(stream, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    if mpp:
        per_metre = round(1e6 / mpp)
        _chunk(stream, b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1))
    packer = zlib.compressobj(4)
    for band in bands:
        _chunk(stream, b"IDAT", packer.compress(_filtered(band)))
    _chunk(stream, b"IDAT", packer.flush())
    _chunk(stream, b"IEND", b"")


def _filtered(band: UInt8[np.ndarray, "h w 3"]) -> bytes:
    height, width, _ = band.shape
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1:4] = band[:, 0]
    filtered[:, 4:] = (band[:, 1:] - band[:, :-1]).reshape(height, -1)
    return filtered.tobytes()


def _chunk(stream: IO[bytes], kind: bytes, data: bytes) -> None:
    if not data and kind == b"IDAT":
        return
    stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
