"""A slide at the resolution that is asked for: the raster that is cut into tiles."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sharding.images import Pixels, UnusableError
from sharding.slides.base import Reduced, Slide

AS_IT_IS = 0.01
"""A level within this share of the target resolution is taken as it is."""
MAX_UPSAMPLING = 0.05
MAX_RATIO = 8
"""A level more than this many times finer than the target is area-averaged first, …"""
MIN_RATIO = 4
"""… to no less than this, which leaves the antialiasing to the filter and bounds what a tile reads."""
_LANCZOS_SUPPORT = 3
_ROUNDING = 1e-6


@dataclass(frozen=True)
class View:
    """A slide at one resolution. `read` is safe to call from several threads."""

    source: Reduced
    scale: tuple[float, float]
    """Pixels of the source that one pixel of the view is wide and high; (1, 1): the source as it is."""
    mpp: float | None
    """Micrometres a pixel of the view; None where nobody knows."""

    @classmethod
    def of(cls, slide: Slide, target_mpp: float | None = None, default_mpp: float | None = None) -> "View":
        """The slide at `target_mpp` (None: its finest level), from the coarsest level that is no coarser than that.

        Args:
            slide: says its resolution itself, or has `default_mpp`.
            target_mpp: micrometres a pixel.
            default_mpp: of the finest level, for slides that do not say it.

        Raises:
            UnusableError: resolution unknown, or the target is finer than the slide.
        """
        mpp = slide.mpp or (default_mpp and (default_mpp, default_mpp))
        if target_mpp is None:
            return cls(Reduced(slide, 0), (1.0, 1.0), sum(mpp) / 2 if mpp else None)
        if not mpp:
            raise UnusableError("resolution unknown: the file does not say its mpp, and the source has none")
        coarsest = max(mpp)
        if coarsest > target_mpp * (1 + MAX_UPSAMPLING):
            raise UnusableError(f"coarser than target_mpp: {coarsest:g} µm a pixel, wanted {target_mpp:g}")
        limit = target_mpp * (1 + AS_IT_IS) / coarsest
        level = max((i for i, it in enumerate(slide.levels) if it.exact and it.downsample <= limit), default=0)
        ratios = [target_mpp / (side * slide.levels[level].downsample) for side in mpp]
        if max(abs(ratio - 1) for ratio in ratios) <= AS_IT_IS:
            return cls(Reduced(slide, level), (1.0, 1.0), sum(mpp) / 2 * slide.levels[level].downsample)
        factor = max(1, int(min(ratios) / MIN_RATIO)) if max(ratios) > MAX_RATIO else 1
        return cls(Reduced(slide, level, factor), (ratios[0] / factor, ratios[1] / factor), target_mpp)

    @property
    def width(self) -> int:
        """In pixels of the view."""
        return int(self.source.extent[0] / self.scale[0] + _ROUNDING)

    @property
    def height(self) -> int:
        """In pixels of the view."""
        return int(self.source.extent[1] / self.scale[1] + _ROUNDING)

    @property
    def step(self) -> tuple[float, float]:
        """Pixels of the slide's finest level that one pixel of the view is wide and high."""
        return self.scale[0] * self.source.downsample, self.scale[1] * self.source.downsample

    def read(self, left: int, top: int, size_px: int) -> Pixels:
        """The uint8 RGB square at (left, top) in pixels of the view.

        Resampled by Lanczos with antialiasing from a region with the filter's margin, so that a tile is what it would
        be in the whole view, and neighbours fit.
        """
        if self.scale == (1.0, 1.0):
            return self.source.read(left, top, size_px, size_px)
        (x, width, across), (y, height, down) = (
            _span(start, size_px, scale, side)
            for start, scale, side in zip((left, top), self.scale, (self.source.width, self.source.height), strict=True)
        )
        region = Image.fromarray(self.source.read(x, y, width, height))
        # One axis after the other: Pillow would choose the order by the sizes, and rounds in between.
        region = region.resize((size_px, height), Image.Resampling.LANCZOS, (across[0], 0, across[1], height))
        return np.asarray(region.resize((size_px, size_px), Image.Resampling.LANCZOS, (0, down[0], size_px, down[1])))


def _span(start: int, size_px: int, scale: float, side: int) -> tuple[int, int, tuple[float, float]]:
    """On one axis: where to begin to read, how much, and where the tile lies in that."""
    low, high = start * scale, min((start + size_px) * scale, side)
    margin = math.ceil(_LANCZOS_SUPPORT * max(scale, 1.0)) + 1
    first, last = max(0, math.floor(low) - margin), min(side, math.ceil(high) + margin)
    return first, last - first, (low - first, high - first)
