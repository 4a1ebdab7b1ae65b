"""Bytes of an image file to what a shard stores: 8-bit RGB, the original bytes wherever that is what they are.

| input | stored |
|---|---|
| JPEG (YCbCr or RGB), PNG, TIFF of 8-bit RGB | the same bytes; `jpg`, `png`, `tif` by content, not by name |
| 8-bit grayscale | the channel repeated three times, PNG |
| 16-bit grayscale or RGB (PNG, TIFF) | round(v / 257), PNG |
| palette | its RGB colours, PNG |
| alpha or transparent colour | over white, round((a·v + (255 − a)·255) / 255), PNG; or refused (`alpha: reject`) |
| CMYK | RGB by Pillow's conversion, PNG |
| TIFF that Pillow cannot read (JPEG 2000 inside) | decoded by tifffile, PNG |
| anything else: float, 32-bit, 1-bit, Lab; several pages; under 8 px; damaged | refused with a reason |

Every image is decoded whole, so a truncated file never passes. EXIF orientation and colour profiles are not applied.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

Alpha = Literal["white", "reject"]
Pixels = NDArray[np.uint8]

MIN_SIDE_PX = 8
PNG_LEVEL = 1
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Pillow stops at 179 megapixels as a guard against hostile uploads; large crops to be tiled may well be larger.
Image.MAX_IMAGE_PIXELS = None


class UnusableError(Exception):
    """One image cannot be stored; the message is the reason that the index shows, free of paths and addresses."""


@dataclass(frozen=True)
class Decoded:
    """uint8 RGB 0..255 (h, w, 3), and the extension under which the original bytes may be stored (None: re-encode)."""

    pixels: Pixels
    ext: str | None


def decode(data: bytes | memoryview, alpha: Alpha = "white") -> Decoded:
    """Decode a whole image file to 8-bit RGB.

    Raises:
        UnusableError: empty, damaged, of an unsupported format or mode, or smaller than 8 px.
    """
    try:
        decoded = _decode(bytes(data), alpha)
    except (UnusableError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise what they like on damaged data (ValueError, OSError, struct.error, their own classes).
        raise UnusableError("truncated or damaged") from error
    if min(decoded.pixels.shape[:2]) < MIN_SIDE_PX:
        raise UnusableError(f"smaller than {MIN_SIDE_PX} px")
    return decoded


def _decode(data: bytes, alpha: Alpha) -> Decoded:
    if not data:
        raise UnusableError("empty file")
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, alpha)
    if data[:8] == _PNG_MAGIC:
        return _decode_png(data, alpha)
    if data[:4] in _TIFF_MAGIC:
        return _decode_tiff(data, alpha)
    try:
        name = Image.open(io.BytesIO(data)).format
    except Exception:
        raise UnusableError("not an image") from None
    raise UnusableError(f"unsupported format: {name}")


def _decode_jpeg(data: bytes, alpha: Alpha) -> Decoded:
    if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB"):
        return Decoded(simplejpeg.decode_jpeg(data), "jpg")
    return _from_pillow(Image.open(io.BytesIO(data)), "jpg", alpha)


def _decode_png(data: bytes, alpha: Alpha) -> Decoded:
    if _PNG_END not in data[-4096:]:
        raise UnusableError("truncated or damaged")
    if data[24] == 16:  # IHDR's bit depth; Pillow would cut 16-bit RGB to its high bytes
        return Decoded(from_array(imagecodecs.png_decode(data), alpha), None)
    return _from_pillow(Image.open(io.BytesIO(data)), "png", alpha)


def _decode_tiff(data: bytes, alpha: Alpha) -> Decoded:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page: Any = tiff.pages[0]
        if len(tiff.pages) > 1:
            raise UnusableError("several pages")
        if page.dtype == np.uint8:
            try:
                image = Image.open(io.BytesIO(data))
            except Image.UnidentifiedImageError:
                image = None
            if image is not None:
                return _from_pillow(image, "tif", alpha)
        if page.dtype not in (np.uint8, np.uint16) or page.photometric not in (1, 2, 6):
            raise UnusableError(f"unsupported mode: {page.dtype} {getattr(page.photometric, 'name', page.photometric)}")
        array = page.asarray()
        return Decoded(from_array(np.moveaxis(array, 0, -1) if page.axes == "SYX" else array, alpha), None)


def _from_pillow(image: Image.Image, ext: str, alpha: Alpha) -> Decoded:
    mode = image.mode
    image.load()
    if mode in ("RGBA", "LA", "PA") or (mode in ("RGB", "L", "P") and "transparency" in image.info):
        return Decoded(from_array(np.asarray(image.convert("RGBA")), alpha), None)
    if mode == "RGB":
        return Decoded(np.asarray(image), ext)
    if mode in ("L", "P", "CMYK"):
        return Decoded(np.asarray(image.convert("RGB")), None)
    raise UnusableError(f"unsupported mode: {mode}")


def from_array(array: NDArray[Any], alpha: Alpha) -> Pixels:
    """Uint8 or uint16, (h, w) or (h, w, 1 to 4) with the alpha channel last, to uint8 RGB."""
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    array = array[..., None] if array.ndim == 2 else array
    channels = array.shape[-1]
    if array.ndim != 3 or channels > 4:
        raise UnusableError(f"unsupported mode: {channels} channels")
    if channels in (2, 4):
        if alpha == "reject":
            raise UnusableError("transparency")
        opacity = array[..., -1:].astype(np.uint32)
        array = ((opacity * array[..., :-1] + (255 - opacity) * 255 + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


@dataclass(frozen=True)
class Encoding:
    """How images are brought to what a shard stores."""

    alpha: Alpha = "white"
    resize_px: int | None = None
    format: Literal["original", "png", "jpg"] = "original"
    jpeg_quality: int = 95

    def keeps(self, ext: str | None) -> bool:
        """Whether original bytes of this extension are stored as they are."""
        return bool(ext) and not self.resize_px and (self.format == "original" or ext in ("jpg", self.format))

    def encode(self, pixels: Pixels) -> tuple[str, bytes]:
        """Extension and bytes of uint8 RGB pixels, resized if asked for; the same pixels give the same bytes."""
        if self.resize_px:
            pixels = resize(pixels, self.resize_px)
        if self.format == "jpg":
            # Pillow's very bytes, at the speed of simplejpeg, which below quality 96 takes a coarser cosine transform.
            return "jpg", bytes(imagecodecs.jpeg8_encode(pixels, level=self.jpeg_quality, subsampling="444"))
        return "png", encode_png(pixels)


def encode_png(pixels: Pixels) -> bytes:
    """Lossless; the same pixels give the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


def resize(pixels: Pixels, size_px: int) -> Pixels:
    """Squash to size × size, Lanczos with antialiasing."""
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.LANCZOS))
