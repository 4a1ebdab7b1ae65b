"""Encoded bytes to uint8 RGB at the resolution asked for."""

import io
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from hdtrain.errors import DataError

Resize = Literal["squash", "crop"]


def decode_rgb(data: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
    """Decode JPEG (simplejpeg, bit-identical to PIL) or whatever PIL reads, as RGB 0..255.

    Raises:
        DataError: the bytes are not a whole image.
    """
    try:
        if bytes(data[:3]) == b"\xff\xd8\xff":
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image cannot be decoded: {error}") from None


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
