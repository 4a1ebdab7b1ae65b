"""Cutting large images into tiles: the grid, the tissue rule, and a bounded cache of decoded pixels."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sharding.images import Alpha, Pixels, UnusableError, decode
from sharding.inputs import Content

MIN_SATURATION_PERCENT = 7
BLACK = 25
"""Pixels whose brightest channel is at most this (10 % of 255) are scanner padding, not tissue."""


class Raster(Protocol):
    """A large image that gives out regions."""

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top); raises UnusableError or OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Tile:
    """One square of a large image, which is an input's content; positions in the raster's pixels from the top left."""

    raster: Raster
    left: int
    top: int
    size_px: int

    def load(self) -> Pixels:
        """The tile's uint8 RGB pixels (size_px, size_px, 3); raises UnusableError or OSError."""
        return self.raster.read(self.left, self.top, self.size_px)


def grid(width: int, height: int, tile_px: int, stride_px: int) -> Iterator[tuple[int, int]]:
    """(left, top) of every tile that lies wholly inside, row by row."""
    for top in range(0, height - tile_px + 1, stride_px):
        for left in range(0, width - tile_px + 1, stride_px):
            yield left, top


def is_tissue(pixels: Pixels) -> NDArray[np.bool_]:
    """Which of the uint8 RGB pixels (h, w, 3) are tissue: HSV saturation above 0.07 and not black. Returns (h, w)."""
    brightest, darkest = pixels.max(-1).astype(np.int16), pixels.min(-1).astype(np.int16)
    return (100 * (brightest - darkest) > MIN_SATURATION_PERCENT * brightest) & (brightest > BLACK)


def tissue_share(pixels: Pixels) -> float:
    """Share of the pixels that are tissue, by the rule of `is_tissue`."""
    return float(is_tissue(pixels).mean())


class PixelCache:
    """The most recently used decoded pixels, up to `max_bytes`; each is decoded once however many threads ask."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future[Pixels]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Pixels]) -> Pixels:
        """What `make` returned for `key`; an exception of `make` goes to everyone who waits and is not kept."""
        with self._lock:
            future = self._entries.get(key)
            if future is not None:
                self._entries.move_to_end(key)
            else:
                mine = self._entries[key] = Future()
        return future.result() if future is not None else self._make(key, mine, make)

    def _make(self, key: Hashable, future: "Future[Pixels]", make: Callable[[], Pixels]) -> Pixels:
        try:
            pixels = make()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
            future.set_exception(error)
            raise
        future.set_result(pixels)
        with self._lock:
            self.bytes += pixels.nbytes
            self._evict(keep=key)
        return pixels

    def _evict(self, keep: Hashable) -> None:
        while self.bytes > self.max_bytes:
            oldest = next((key for key, entry in self._entries.items() if entry.done() and key != keep), None)
            if oldest is None:
                return
            self.bytes -= self._entries.pop(oldest).result().nbytes


CACHE = PixelCache(256 * 2**20)
"""Shared by all rasters of the process."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRaster:
    """An ordinary image, decoded whole. All its tiles share one raster, so that it is decoded once for all of them."""

    content: Content
    alpha: Alpha = "white"

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top)."""
        tile = CACHE.get(self, self._decode)[top : top + size_px, left : left + size_px]
        if tile.shape != (size_px, size_px, 3):
            raise UnusableError("not of the size that its header says")
        return np.ascontiguousarray(tile)

    def _decode(self) -> Pixels:
        content = self.content.load()
        return decode(content, self.alpha).pixels if isinstance(content, bytes) else content
