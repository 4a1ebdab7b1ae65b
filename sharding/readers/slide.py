"""`slide`: tiles of whole-slide images (.svs, .tif, .tiff), read by tifffile at the baseline level.

Only the segments under a tile are decoded, so a slide need not fit in memory. JPEG and JPEG 2000 (Aperio's own
compression codes too) are decoded through imagecodecs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from hdtrain.errors import DataError
from sharding.candidate import Candidate
from sharding.images import Pixels, UnusableError
from sharding.readers.files import Reader, Source, image_files
from sharding.tiles import CACHE, file_state

SLIDE_SUFFIXES = frozenset({".svs", ".tif", ".tiff"})
_WHITE = 255


def read(source: Source) -> Reader:
    """Open the source: one slide file, or a folder with slides at any depth.

    Raises:
        DataError: there is no slide.
    """
    root = source.config.path
    files = [root] if root.is_file() else list(image_files(root, SLIDE_SUFFIXES))
    if not files or files[0].suffix.lower() not in SLIDE_SUFFIXES:
        raise DataError(f"{root}: no slides; expected files ending in {', '.join(sorted(SLIDE_SUFFIXES))}")

    def candidates() -> Iterator[Candidate]:
        for file in files:
            try:
                state = file_state(file)
                page = _baseline(file, state)
            except UnusableError as error:
                yield source.broken(file, None, str(error))
                continue
            found = re.search(r"MPP\s*=\s*([0-9]*\.?[0-9]+)", page.description)
            mpp = float(found[1]) if found else source.config.mpp
            yield from source.tiles(file, None, SlideRaster(file, state), page.imagewidth, page.imagelength, mpp=mpp)

    return Reader(source, None, candidates)


@dataclass(frozen=True, slots=True)
class SlideRaster:
    """The baseline level of a slide; safe to share between threads."""

    path: Path
    state: tuple[int, int] | None

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top); segments absent from the file are white."""
        page = _baseline(self.path, self.state)
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        columns = -(-page.imagewidth // width)
        tile = np.empty((size_px, size_px, 3), np.uint8)
        for row in range(top // height, (top + size_px - 1) // height + 1):
            for column in range(left // width, (left + size_px - 1) // width + 1):
                segment = self._segment(page, row * columns + column)
                y, x = row * height - top, column * width - left
                target = tile[max(y, 0) : y + height, max(x, 0) : x + width]
                target[:] = segment[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
        return tile

    def _segment(self, page: Any, index: int) -> Pixels:
        return CACHE.get((self, index), lambda: self._decode(page, index))

    def _decode(self, page: Any, index: int) -> Pixels:
        size = page.databytecounts[index]
        try:
            with self.path.open("rb") as stream:
                stream.seek(page.dataoffsets[index])
                data = stream.read(size)
            if len(data) < size:
                raise UnusableError("truncated or damaged")
            segment, _, shape = page.decode(data or None, index, jpegtables=page.jpegtables)
        except (UnusableError, MemoryError, OSError):
            raise
        except Exception as error:
            raise UnusableError("truncated or damaged") from error
        return np.full(shape[1:], _WHITE, np.uint8) if segment is None else segment[0]


@lru_cache(maxsize=128)
def _baseline(path: Path, state: tuple[int, int] | None) -> Any:
    """The first page of a TIFF, its tags read and its file closed again; `state` keeps a changed file apart."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            usable = page.dtype == np.uint8 and page.samplesperpixel == 3 and page.planarconfig == 1
            page.decode, page.jpegtables, page.dataoffsets, page.databytecounts  # noqa: B018  read while it is open
    except OSError as error:
        raise UnusableError(f"unreadable: {error.strerror}") from None
    except Exception as error:
        raise UnusableError("truncated or damaged") from error
    if not usable:
        raise UnusableError(f"unsupported mode: {page.dtype} slide of {page.samplesperpixel} samples")
    return page
