"""What a whole-slide image is to its readers: levels of a pyramid, a resolution, and regions read on demand."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sharding.images import Pixels

BLOCK_PX = 2048
"""Regions that are averaged are read in blocks of at most this side."""
_MPP_RANGE = (0.05, 20.0)
_LEVEL_SLACK_PX = 1


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid; `downsample` is how many pixels of the finest level one of its pixels is wide."""

    width: int
    height: int
    downsample: float
    exact: bool = True
    """Regions are its pixels; False: its reader interpolates between them, which is good enough for an overview."""


class Slide(ABC):
    """An opened slide. `read` is safe to call from several threads."""

    levels: Sequence[Level]
    """The finest first."""
    mpp: tuple[float, float] | None
    """Micrometres a pixel of the finest level (x, y); None where the file does not say it, or says nonsense."""

    @abstractmethod
    def read(self, left: int, top: int, width: int, height: int, level: int = 0) -> Pixels:
        """uint8 RGB (height, width, 3) of a region inside a level, in the level's own pixels.

        What the scanner left out is white. Raises UnusableError for a damaged part of the file, OSError for a disk
        that does not answer.
        """


def plausible_mpp(x: float, y: float) -> tuple[float, float] | None:
    """(x, y) if both can be a microscope's: 0.05 to 20 µm. A photograph's 72 dpi (353 µm) is not."""
    low, high = _MPP_RANGE
    return (x, y) if low <= x <= high and low <= y <= high else None


def level_downsample(finest: tuple[int, int], size: tuple[int, int]) -> float | None:
    """How much coarser a level of `size` (width, height) is; None if its sides disagree by more than a pixel.

    Scanners cut the odd pixel at the edge off, so the ratio of the sizes is not quite the true one; a whole number that
    explains both sides is. Levels padded to whole segments (Philips) disagree, and must not be trusted.
    """
    ratio = (finest[0] / size[0] + finest[1] / size[1]) / 2
    for downsample in (float(round(ratio)), ratio):
        if downsample >= 1 and all(
            abs(full / downsample - side) <= _LEVEL_SLACK_PX for full, side in zip(finest, size, strict=True)
        ):
            return downsample
    return None


@dataclass(frozen=True)
class Reduced:
    """A level, area-averaged by a whole factor: the raster from which an overview or a much coarser tile is made.

    Its pixel (x, y) is the mean (Pillow's `reduce`) of the level's pixels from (x·factor, y·factor) on; at the right
    and lower edge of those that are left.
    """

    slide: Slide
    level: int
    factor: int = 1

    @property
    def width(self) -> int:
        """In its own pixels."""
        return -(-self.slide.levels[self.level].width // self.factor)

    @property
    def height(self) -> int:
        """In its own pixels."""
        return -(-self.slide.levels[self.level].height // self.factor)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the level in its own pixels, of which the last may be there in part."""
        level = self.slide.levels[self.level]
        return level.width / self.factor, level.height / self.factor

    @property
    def downsample(self) -> float:
        """Pixels of the finest level that one of its pixels is wide."""
        return self.slide.levels[self.level].downsample * self.factor

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """uint8 RGB (height, width, 3) of a region inside it; holds one block of the level at a time."""
        if self.factor == 1:
            return self.slide.read(left, top, width, height, self.level)
        pixels = np.empty((height, width, 3), np.uint8)
        for x, y, w, h in self.blocks(left, top, width, height):
            pixels[y - top : y - top + h, x - left : x - left + w] = self._mean(x, y, w, h)
        return pixels

    def blocks(self, left: int, top: int, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut a region into (left, top, width, height), each at most BLOCK_PX pixels of the level wide and high."""
        step = max(1, BLOCK_PX // self.factor)
        for y in range(top, top + height, step):
            for x in range(left, left + width, step):
                yield x, y, min(step, left + width - x), min(step, top + height - y)

    def _mean(self, left: int, top: int, width: int, height: int) -> Pixels:
        level, factor = self.slide.levels[self.level], self.factor
        x, y = left * factor, top * factor
        w, h = min(width * factor, level.width - x), min(height * factor, level.height - y)
        return np.asarray(Image.fromarray(self.slide.read(x, y, w, h, self.level)).reduce(factor))
