"""Sizes of a painting, in places of the latent canvas and in pixels, and what it needs of disk and memory. No torch."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from hdtrain.config.painting import PaintConfig
from hdtrain.diffusion.windows import window_starts

PNG_LIMIT_PX = 4096
"""`output: auto` writes a TIFF of anything larger than the square of this."""
ROWS_AT_ONCE = 64
"""Rows of pixels that are rounded together."""
PYRAMID = 4 / 3
"""All levels of a pyramid together, in parts of the finest."""


@dataclass(frozen=True)
class PaintPlan:
    """A grid of cells, each as large as the denoiser's window, on a canvas; windows of that size every `stride`."""

    rows: int
    columns: int
    channels: int
    window: int
    """Height and width of a window, and of a cell, in places of the canvas."""
    factor: int
    """Pixels a place, along one axis."""
    stride: int
    batch_size: int

    @property
    def height(self) -> int:
        """Of the canvas, in places."""
        return self.rows * self.window

    @property
    def width(self) -> int:
        """Of the canvas, in places."""
        return self.columns * self.window

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height * self.factor, self.width * self.factor

    @cached_property
    def row_starts(self) -> list[int]:
        """First rows of the windows."""
        return window_starts(self.height, self.window, self.stride)

    @cached_property
    def column_starts(self) -> list[int]:
        """First columns of the windows."""
        return window_starts(self.width, self.window, self.stride)

    @property
    def num_windows(self) -> int:
        """Of a step."""
        return len(self.row_starts) * len(self.column_starts)

    def places(self, first: int, last: int) -> list[tuple[int, int]]:
        """First places (i, j) of windows `first` … `last` − 1, row by row."""
        columns = self.column_starts
        return [(self.row_starts[n // len(columns)], columns[n % len(columns)]) for n in range(first, last)]

    def batches(self, windows: range) -> list[list[tuple[int, int]]]:
        """The places of these windows, `batch_size` at a time; the last batch may be shorter."""
        firsts = range(windows.start, windows.stop, self.batch_size)
        return [self.places(first, min(first + self.batch_size, windows.stop)) for first in firsts]

    @property
    def rows_in_band(self) -> int:
        """Rows of windows that are decoded together: as many as begin within one window's height.

        So the windows of a band reach into the next band, and no farther.
        """
        return ceil(self.window / self.stride)

    @property
    def num_bands(self) -> int:
        """Of decoding."""
        return ceil(len(self.row_starts) / self.rows_in_band)

    def band_windows(self, band: int) -> range:
        """Numbers of the windows of a band."""
        columns = len(self.column_starts)
        first, last = band * self.rows_in_band, min((band + 1) * self.rows_in_band, len(self.row_starts))
        return range(first * columns, last * columns)

    def band_rows(self, band: int) -> range:
        """Rows of the canvas that are complete after this band, and were not before it."""
        return range(self._begin(band), self._begin(band + 1))

    def band_reach(self, band: int) -> range:
        """Rows of the canvas that the windows of a band lie on."""
        last = min((band + 1) * self.rows_in_band, len(self.row_starts)) - 1
        return range(self._begin(band), self.row_starts[last] + self.window)

    def _begin(self, band: int) -> int:
        number = band * self.rows_in_band
        return self.row_starts[number] if number < len(self.row_starts) else self.height

    def is_tiff(self, config: PaintConfig) -> bool:
        """Whether the image is written as a TIFF."""
        height, width = self.pixels
        return config.output == "tiff" or (config.output == "auto" and height * width > PNG_LIMIT_PX**2)

    def disk_bytes(self, config: PaintConfig) -> int:
        """The most that the run needs at once: the canvas, raw pixels, and the image at its worst.

        Noise cannot be compressed, so no compression is reckoned with.
        """
        height, width = self.pixels
        levels = PYRAMID if self.is_tiff(config) else 1.0
        canvas = 2 * self.channels * self.height * self.width * (8 if config.precision == "fp64" else 4)
        return int(canvas + 2 * levels * height * width * 3)

    def memory_bytes(self, config: PaintConfig) -> int:
        """What the canvas needs of memory on each rank, networks and their activations not counted.

        While it is solved: the canvas, its sum of 64-bit integers and a few rows of cells; while it is decoded: the
        canvas, two bands of sums, some rows of means, and a batch of decoded windows.
        """
        number = 8 if config.precision == "fp64" else 4
        place, pixel_row = self.channels * self.width, 3 * self.pixels[1]
        canvas = place * self.height * number
        solving = place * self.height * 8 + 6 * place * self.window * 8
        reach = max(len(self.band_reach(band)) for band in range(self.num_bands)) * self.factor
        batch = 2 * self.batch_size * 3 * (self.window * self.factor) ** 2 * number
        return canvas + max(solving, (2 * reach + 3 * ROWS_AT_ONCE) * pixel_row * 8 + batch)


def plan_of(
    config: PaintConfig, rows: int, columns: int, latent_shape: tuple[int, int, int], resolution: int
) -> PaintPlan:
    """The plan of a grid of `rows` × `columns` cells.

    Args:
        config: of `paint`.
        rows: of the grid.
        columns: of the grid.
        latent_shape: channels, height and width of what the denoiser sees.
        resolution: pixels a side that this becomes.
    """
    channels, window, _ = latent_shape
    stride = config.stride or max(1, window // 4)
    return PaintPlan(rows, columns, channels, window, resolution // window, stride, config.batch_size)
