"""Cutting large images into tiles: the grid, the tissue rule, and a bounded cache of decoded pixels."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sharding.images import Alpha, Pixels, UnusableError, decode

MIN_SATURATION = 0.07
BLACK = 25
"""Pixels whose brightest channel is at most this (10 % of 255) are scanner padding, not tissue."""


class Raster(Protocol):
    """A large image that gives out regions."""

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top); raises UnusableError."""
        ...


@dataclass(frozen=True, slots=True)
class Tile:
    """One square of a large image; positions in its pixels from the top left."""

    raster: Raster
    left: int
    top: int
    size_px: int

    def pixels(self) -> Pixels:
        """Decode this tile."""
        return self.raster.read(self.left, self.top, self.size_px)


def grid(width: int, height: int, tile_px: int, stride_px: int) -> Iterator[tuple[int, int]]:
    """(left, top) of every tile that lies wholly inside, row by row."""
    for top in range(0, height - tile_px + 1, stride_px):
        for left in range(0, width - tile_px + 1, stride_px):
            yield left, top


def tissue_share(pixels: Pixels) -> float:
    """Share of the pixels that are tissue: HSV saturation above 0.07 and not black."""
    brightest, darkest = pixels.max(-1).astype(np.int32), pixels.min(-1).astype(np.int32)
    return float(np.mean((brightest - darkest > MIN_SATURATION * brightest) & (brightest > BLACK)))


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
            if self.bytes > self.max_bytes:
                self._evict(keep=key)
        return pixels

    def _evict(self, keep: Hashable) -> None:
        for key in [key for key, entry in self._entries.items() if entry.done() and key != keep]:
            self.bytes -= self._entries.pop(key).result().nbytes
            if self.bytes <= self.max_bytes:
                break


CACHE = PixelCache(512 * 2**20)


def file_state(path: Path) -> tuple[int, int] | None:
    """Size and time of change in ns, to tell a file from what it was before; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True, slots=True)
class ImageRaster:
    """A JPEG, PNG or TIFF file that Pillow can hold whole."""

    path: Path
    alpha: Alpha
    state: tuple[int, int] | None

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top)."""
        pixels = CACHE.get(self, lambda: decode(self.path.read_bytes(), self.alpha).pixels)
        tile = pixels[top : top + size_px, left : left + size_px]
        if tile.shape != (size_px, size_px, 3):
            raise UnusableError("not of the size that its header says")
        return np.ascontiguousarray(tile)


@dataclass(frozen=True, slots=True)
class BrokenRaster:
    """Stands for a large image that cannot be opened or cut, so that it is counted like any other bad input."""

    reason: str

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """Raise the reason."""
        raise UnusableError(self.reason)
