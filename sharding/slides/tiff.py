"""Slides that are tiled TIFFs, read by tifffile: Aperio `.svs`, generic and OME pyramids (pages or SubIFDs).

Only the segments under a region are decoded, so a slide need not fit in memory. JPEG, JPEG 2000 (Aperio's code too),
deflate, LZW and whatever else imagecodecs knows.
"""

import logging
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from sharding.images import Pixels, UnusableError
from sharding.slides.base import Level, Slide, level_downsample, plausible_mpp
from sharding.tiles import CACHE

MAX_SEGMENT_BYTES = 256 * 2**20
"""A TIFF that is one huge strip cannot be read by region."""
_WHITE = 255
_RGB, _YCBCR = 2, 6
_APERIO_YCBCR = 33003
"""JPEG 2000 of YCbCr, which tifffile leaves as it is."""
_JPEG = {6, 7, 34892, 33007}
_JPEG_END = b"\xff\xd9"
"""Without it the decoder would fill what is missing with grey and say nothing."""
_MICROMETRES = {2: 25400.0, 3: 10000.0}
_OME_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}

# What tifffile has to say on damaged tags becomes the reason; its log lines name no file. An application that asks for
# logging still gets them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class UnsupportedTiffError(UnusableError):
    """A sound TIFF that this reader does not read; OpenSlide may."""


@dataclass(frozen=True, slots=True)
class _Segments:
    """One level's page, its tags read while the file was open, so that any thread may decode with it."""

    page: Any
    width: int
    height: int
    columns: int

    @classmethod
    def of(cls, page: Any) -> "_Segments | None":
        """None if the page's segments are too large to be decoded one by one."""
        width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        height = min(height, page.imagelength)
        if width * height * 3 > MAX_SEGMENT_BYTES:
            return None
        page.decode, page.jpegtables, page.dataoffsets, page.databytecounts  # noqa: B018
        return cls(page, width, height, -(-page.imagewidth // width))


class TiffSlide(Slide):
    """A slide through tifffile."""

    def __init__(self, path: Path):
        """Read the tags of all levels.

        Raises:
            UnsupportedTiffError: not 8-bit RGB, not cut into segments, or of a maker whose rules tifffile leaves out.
            UnusableError: not a TIFF, several planes, truncated or damaged.
        """
        try:
            self._file = path.open("rb", buffering=0)
            _check_magic(self._file.read(2))
            with tifffile.TiffFile(path) as tiff:
                pages = _pages(tiff)
                self._segments = [segments for page in pages if (segments := _Segments.of(page))]
                self.mpp = _mpp(pages[0], tiff.ome_metadata)
        except (UnusableError, MemoryError):
            raise
        except OSError as error:
            raise UnusableError(f"unreadable: {error.strerror or error}") from None
        except Exception as error:
            # Parsing damaged tags raises what it likes: TiffFileError, struct.error, KeyError, OverflowError ….
            raise UnusableError("truncated or damaged") from error
        finest = pages[0].imagewidth, pages[0].imagelength
        if not self._segments or self._segments[0].page is not pages[0]:
            raise UnsupportedTiffError(f"not cut into segments: {finest[0]} × {finest[1]} px in one piece")
        self.levels = []
        for segments in self._segments:
            size = segments.page.imagewidth, segments.page.imagelength
            self.levels.append(Level(*size, level_downsample(finest, size) or 0))
        self._id = object()

    def read(self, left: int, top: int, width: int, height: int, level: int = 0) -> Pixels:
        """The region; each segment is decoded once while the cache holds it."""
        segments = self._segments[level]
        region = np.empty((height, width, 3), np.uint8)
        for row in range(top // segments.height, (top + height - 1) // segments.height + 1):
            for column in range(left // segments.width, (left + width - 1) // segments.width + 1):
                index = row * segments.columns + column
                piece = CACHE.get((self._id, level, index), partial(self._decode, segments, index))
                y, x = row * segments.height - top, column * segments.width - left
                target = region[max(y, 0) : y + segments.height, max(x, 0) : x + segments.width]
                piece = piece[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
                if piece.shape != target.shape:
                    raise UnusableError("truncated or damaged")
                target[:] = piece
        return region

    def _decode(self, segments: _Segments, index: int) -> Pixels:
        page = segments.page
        try:
            size = page.databytecounts[index]
            data = os.pread(self._file.fileno(), size, page.dataoffsets[index])
            if len(data) < size or (page.compression in _JPEG and data and not data.rstrip(b"\0").endswith(_JPEG_END)):
                raise UnusableError("truncated or damaged")
            piece, _, shape = page.decode(data or None, index, jpegtables=page.jpegtables)
        except (UnusableError, MemoryError, OSError):
            raise
        except Exception as error:
            raise UnusableError("truncated or damaged") from error
        return np.full(shape[1:], _WHITE, np.uint8) if piece is None else piece[0]


def _check_magic(start: bytes) -> None:
    if start not in (b"II", b"MM"):
        raise UnusableError("not a TIFF" if start else "empty file")


def _pages(tiff: tifffile.TiffFile) -> list[Any]:
    """The pages of the main image, the finest first; levels that do not fit it are left out."""
    if tiff.is_philips or tiff.is_bif:
        raise UnsupportedTiffError("unsupported format: " + ("Philips TIFF" if tiff.is_philips else "Ventana TIFF"))
    series = tiff.series[0]
    finest: Any = series.keyframe
    if len(series.pages) > 1:
        raise UnusableError("several planes")  # not for OpenSlide, which would show the first and say nothing
    if problem := _problem(finest):
        raise UnsupportedTiffError(problem)
    size = finest.imagewidth, finest.imagelength
    pages: list[Any] = [level.keyframe for level in series.levels]
    if series.kind != "svs":  # tifffile itself expects each level to be 2, 3 or 4 times coarser than the one before
        pages += [page for page in (*(finest.pages or ()), *tiff.pages) if getattr(page, "is_reduced", False)]
    levels = {page.offset: page for page in pages if not _problem(page)}.values()
    coarser = [page for page in levels if (level_downsample(size, (page.imagewidth, page.imagelength)) or 0) > 1]
    return [finest, *sorted(coarser, key=lambda page: -page.imagewidth)]


def _problem(page: Any) -> str | None:
    """Why a page cannot be read as 8-bit RGB by segments."""
    if page.dtype != np.uint8 or page.samplesperpixel != 3 or page.planarconfig != 1:
        planes = ", one plane a channel" if page.planarconfig != 1 else ""
        return f"unsupported mode: {page.dtype} of {page.samplesperpixel} samples{planes}"
    if page.compression == _APERIO_YCBCR or (page.photometric == _YCBCR and page.compression not in _JPEG):
        return f"unsupported mode: YCbCr with compression {int(page.compression)}"
    if page.photometric not in (_RGB, _YCBCR):
        return f"unsupported mode: {getattr(page.photometric, 'name', page.photometric)}"
    return None


def _mpp(page: Any, ome: str | None) -> tuple[float, float] | None:
    """From Aperio's description, OME-XML, or the resolution tags; in this order."""
    aperio = re.search(r"MPP\s*=\s*([0-9]*\.?[0-9]+)", page.description)
    if aperio:
        return plausible_mpp(float(aperio[1]), float(aperio[1]))
    sides = [_ome_size(ome, axis) for axis in "XY"] if ome else [None]
    if all(sides):
        return plausible_mpp(*sides)  # type: ignore[arg-type]
    unit = _MICROMETRES.get(page.tags.valueof(296, 2))
    resolution = [page.tags.valueof(282), page.tags.valueof(283)]
    if unit and all(isinstance(value, tuple) and all(value) for value in resolution):
        (x, x_over), (y, y_over) = resolution
        return plausible_mpp(unit * x_over / x, unit * y_over / y)
    return None


def _ome_size(ome: str, axis: str) -> float | None:
    size = re.search(rf'PhysicalSize{axis}\s*=\s*"([0-9.eE+-]+)"', ome)
    unit = re.search(rf'PhysicalSize{axis}Unit\s*=\s*"([^"]*)"', ome)
    scale = _OME_UNITS.get(unit[1] if unit else "µm")
    return float(size[1]) * scale if size and scale else None
