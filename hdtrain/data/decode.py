"""Encoded bytes to uint8 RGB at the resolution asked for."""

import io
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from hdtrain.errors import DataError

Resize = Literal["squash", "crop"]
JPEG = b"\xff\xd8\xff"
BROKEN = "image cannot be decoded"
_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode_rgb(data: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
    """Decode JPEG (simplejpeg, bit-identical to PIL) or whatever PIL reads, as RGB 0..255.

    Raises:
        DataError: the bytes are not a whole image.
    """
    try:
        if data[:3] == JPEG:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{BROKEN}: not an image of a known kind") from None
    except _ERRORS as error:
        raise DataError(f"{BROKEN}: {error}") from None


def decode_into(data: bytes | memoryview, out: UInt8[np.ndarray, "r r 3"], resize: Resize) -> None:
    """Decode an image into its place in a batch, resized to that where it is of another size.

    Raises:
        DataError: the bytes are not a whole image; `out` may hold a part of it.
    """
    try:
        if data[:3] == JPEG and simplejpeg.decode_jpeg_header(data)[:2] == out.shape[:2]:
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
            return
    except ValueError as error:
        raise DataError(f"{BROKEN}: {error}") from None
    out[...] = fit(decode_rgb(data), out.shape[0], resize)


def fit(image: UInt8[np.ndarray, "h w 3"], resolution: int, resize: Resize) -> UInt8[np.ndarray, "r r 3"]:
    """Resize to a square of `resolution` pixels (bicubic, antialiased).

    `squash` ignores the aspect ratio; `crop` takes the centre square first.
    """
    height, width = image.shape[:2]
    if (height, width) == (resolution, resolution):
        return image
    box = (0.0, 0.0, float(width), float(height))
    if resize == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    resized = Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)
