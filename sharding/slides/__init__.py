"""Whole-slide images: opened by tifffile or OpenSlide, seen at one resolution, with a mask of the tissue."""

from pathlib import Path
from typing import Literal

from sharding.images import UnusableError
from sharding.slides.base import Slide
from sharding.slides.files import TIFF_SUFFIXES
from sharding.slides.tiff import TiffSlide, UnsupportedTiffError
from sharding.slides.vendor import INSTALL, VendorSlide, openslide_module

SlideReaderName = Literal["auto", "tifffile", "openslide"]


def open_slide(path: Path, reader: SlideReaderName = "auto") -> Slide:
    """Open a slide.

    Args:
        path: the file.
        reader: `auto`: tifffile for `.svs`, `.tif`, `.tiff` that it can read, OpenSlide for the rest.

    Raises:
        UnusableError: neither reader can; the message is the reason.
    """
    if reader == "openslide" or (reader == "auto" and path.suffix.lower() not in TIFF_SUFFIXES):
        return VendorSlide(path)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        raise UnusableError(f"unsupported format: tifffile does not read {path.suffix.lower()} slides")
    try:
        return TiffSlide(path)
    except UnsupportedTiffError as error:
        if reader == "tifffile":
            raise
        if openslide_module() is None:
            raise UnusableError(f"{error}; OpenSlide may read it: {INSTALL}") from None
        try:
            return VendorSlide(path)
        except UnusableError:
            raise error from None
