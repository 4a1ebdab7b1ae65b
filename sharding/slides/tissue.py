"""Where a slide has tissue, seen on a small overview, so that empty glass is never decoded at full resolution."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.images import UnusableError
from sharding.slides.base import Reduced, Slide
from sharding.tiles import is_tissue

DOWNSAMPLE = 16
MAX_COARSENING = 4
"""A level of the pyramid is taken as the overview up to this many times coarser than wanted."""
MIN_TILE_SIDE = 8
"""Pixels of the overview along a tile, at least: small tiles get a finer one."""
MAX_PIXELS = 64 * 2**20
_MIN_SPLIT_PX = 256
_ROUNDING = 1e-9


def overview(slide: Slide, tile_side: float) -> Reduced:
    """The raster to look for tissue in, about 16 times coarser than the slide.

    A level of the pyramid where one is 16 to 64 times coarser, else the next finer one, area-averaged. Finer for tiles
    under 128 px of the finest level (`tile_side`), coarser for slides of more than 16 gigapixels.
    """
    finest = slide.levels[0]
    wanted = max(1.0, min(DOWNSAMPLE, tile_side / MIN_TILE_SIDE), math.sqrt(finest.width * finest.height / MAX_PIXELS))
    for index, level in enumerate(slide.levels):
        if wanted * 0.99 <= level.downsample <= wanted * MAX_COARSENING:
            return Reduced(slide, index)
    index, level = [(i, level) for i, level in enumerate(slide.levels) if i == 0 or level.downsample < wanted][-1]
    return Reduced(slide, index, max(1, math.ceil(wanted / level.downsample - 0.01)))


@dataclass(frozen=True)
class TissueMask:
    """Which pixels of the overview are tissue."""

    mask: NDArray[np.bool_]
    """(h, w); at most 64 MiB."""
    downsample: float

    @classmethod
    def of(cls, slide: Slide, tile_side: float) -> "TissueMask":
        """Look at the whole overview block by block.

        What cannot be read counts as tissue, so that its tiles are decoded and rejected for what is wrong with them.
        """
        view = overview(slide, tile_side)
        mask = np.ones((view.height, view.width), np.bool_)
        for block in view.blocks(0, 0, view.width, view.height):
            for (left, top, width, height), found in _look(view, *block):
                mask[top : top + height, left : left + width] = found
        return cls(mask, view.downsample)

    def shares(self, top: float, bottom: float, lefts: NDArray[Any], side: float) -> NDArray[np.float64]:
        """Share of tissue in each tile of a row, by area: pixels at a tile's edge count in part.

        Args:
            top: of the row, in pixels of the slide's finest level.
            bottom: likewise.
            lefts: left edges (n,), likewise.
            side: width of a tile, likewise.
        """
        height, width = self.mask.shape
        y0, y1 = top / self.downsample, min(bottom / self.downsample, height)
        x0, x1 = lefts / self.downsample, np.minimum((lefts + side) / self.downsample, width)
        first, last = math.floor(y0), math.ceil(y1)
        rows = np.arange(first, last)
        weights = np.minimum(rows + 1, y1) - np.maximum(rows, y0)
        columns = (weights[:, None] * self.mask[first:last]).sum(0)
        edges, integral = np.arange(width + 1), np.concatenate([[0.0], np.cumsum(columns)])
        area = (x1 - x0) * (y1 - y0)
        return (np.interp(x1, edges, integral) - np.interp(x0, edges, integral)) / area

    def is_background(self, shares: NDArray[np.float64], min_tissue: float) -> NDArray[np.bool_]:
        """Less tissue than `min_tissue`, rounding apart."""
        return shares < min_tissue - _ROUNDING


def _look(
    view: Reduced, left: int, top: int, width: int, height: int
) -> Iterator[tuple[tuple[int, int, int, int], NDArray[np.bool_] | bool]]:
    """(block, what is tissue in it); a block with a damaged part is cut in four until the part is small."""
    try:
        yield (left, top, width, height), is_tissue(view.read(left, top, width, height))
    except (UnusableError, OSError):
        if max(width, height) * view.factor <= _MIN_SPLIT_PX:
            yield (left, top, width, height), True
            return
        w, h = -(-width // 2), -(-height // 2)
        for y in range(top, top + height, h):
            for x in range(left, left + width, w):
                yield from _look(view, x, y, min(w, left + width - x), min(h, top + height - y))
