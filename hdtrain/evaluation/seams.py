"""Do windows or cells show in a painting? Differences across their borders against those elsewhere. No torch.

For every line between two rows (or columns) of pixels: the mean of |difference| of grey values across it. The figure is
the mean over lines at borders, divided by that over other lines of the same phase of two grids that are no seams: the
decoder's own (one that makes 4 × 4 pixels of a latent leaves a pattern of period 4 everywhere) and that of JPEG, whose
blocks of 8 × 8 pixels real images carry. 1: nothing shows; above 1: steps at borders; below 1: borders are smoother
than the rest. A real image has about 1 at any lines, and says by its interval how far from 1 chance alone goes.
"""

from dataclasses import asdict, dataclass
from math import lcm
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from hdtrain.evaluation.real_pixels import open_real

RESAMPLES = 1000
JPEG_PX = 8
"""Height and width of a block of JPEG."""
_GREY = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601."""


class PixelRows(Protocol):
    """uint8 RGB of which rows can be had: an array, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, 3."""
        ...

    def __getitem__(self, rows: slice, /) -> UInt8[np.ndarray, "n w 3"]:
        """Some of the rows."""
        ...


@dataclass(frozen=True)
class Seams:
    """Borders of one kind."""

    ratio: float
    """Mean |difference| at borders over that elsewhere."""
    low: float
    """Of the 95 % interval, from a bootstrap over square blocks of the image."""
    high: float
    border: float
    """Mean |difference| of grey values (0 … 255) across a border."""
    elsewhere: float
    blocks: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} … {self.high:.3f})"


@dataclass(frozen=True)
class SeamReport:
    """Borders of windows and of cells, each against the same other lines; None where an image has no such border."""

    windows: Seams | None
    """At multiples of the stride that are no border of a cell."""
    cells: Seams | None

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {name: asdict(found) if found else None for name, found in vars(self).items()}

    def __str__(self) -> str:
        parts = {"window borders": self.windows, "cell borders": self.cells}
        return "differences across " + ", ".join(f"{name} {found or 'none'}" for name, found in parts.items())


def measure_seams(pixels: PixelRows, stride_px: int, cell_px: int, phase_px: int = 1, seed: int = 0) -> SeamReport:
    """Measure an image; a band of rows is read at a time.

    Args:
        pixels: the image.
        stride_px: from one window to the next.
        cell_px: height and width of a cell; the blocks of the bootstrap are of this size.
        phase_px: pixels of a latent. Other lines are at multiples of it and of 8, as far as the stride is longer.
        seed: of the bootstrap.
    """
    phase_px = next((period for period in (lcm(phase_px, JPEG_PX), phase_px) if period < stride_px), 1)
    sums = [_sums(pixels, stride_px, cell_px, phase_px, across) for across in (0, 1)]
    blocks = np.concatenate(sums)
    return SeamReport(_compared(blocks, 0, seed), _compared(blocks, 1, seed))


def compare_seams(
    painting: PixelRows, real: Path, stride_px: int, cell_px: int, phase_px: int = 1
) -> dict[str, SeamReport]:
    """A painting's seams beside those of a real image of its size, at the same lines."""
    height, width = painting.shape[:2]
    measured: dict[str, PixelRows] = {"painting": painting, "real": open_real(real, height, width)}
    return {name: measure_seams(found, stride_px, cell_px, phase_px) for name, found in measured.items()}


def _sums(
    pixels: PixelRows, stride_px: int, cell_px: int, phase_px: int, across: int
) -> Float64[np.ndarray, "blocks 3 2"]:
    """Sum and number of |differences| in every block: at window borders, at cell borders, elsewhere.

    `across`: 0 between rows, 1 between columns. A line belongs to the block that begins there or that it lies in.
    """
    height, width = pixels.shape[:2]
    found = []
    for top in range(0, height, cell_px):
        above = top - 1 if top and across == 0 else top
        grey = np.asarray(pixels[above : top + cell_px], np.float64) @ _GREY
        differences = np.abs(np.diff(grey, axis=across))
        if across == 0:
            lines = np.arange(above + 1, above + 1 + len(differences))
            summed = _by_block(differences, cell_px)
            found.append(_by_kind(summed, lines, stride_px, cell_px, phase_px, height))
        else:
            lines, number = np.arange(1, width), len(differences)
            columns = differences.sum(axis=0)
            for left in range(0, width, cell_px):
                own = (lines >= left) & (lines < left + cell_px)
                part = np.stack([columns[own], np.full(own.sum(), number)], axis=1)[:, None]
                found.append(_by_kind(part, lines[own], stride_px, cell_px, phase_px, width))
    return np.concatenate(found)


def _by_block(differences: Float64[np.ndarray, "n w"], cell_px: int) -> Float64[np.ndarray, "n b 2"]:
    """Sum and number of the values of every line in every block along it."""
    starts = np.arange(0, differences.shape[1], cell_px)
    sizes = np.diff([*starts, differences.shape[1]])
    sums = np.add.reduceat(differences, starts, axis=1)
    return np.stack([sums, np.broadcast_to(sizes, sums.shape)], axis=2)


def _by_kind(
    summed: Float64[np.ndarray, "n b 2"], lines: np.ndarray, stride_px: int, cell_px: int, phase_px: int, length: int
) -> Float64[np.ndarray, "b 3 2"]:
    cell = lines % cell_px == 0
    window = (lines % stride_px == 0) & ~cell
    other = (lines % phase_px == 0) & (lines % stride_px != 0) & ~cell
    inside = lines < length
    return np.stack([summed[kind & inside].sum(axis=0) for kind in (window, cell, other)], axis=1)


def _compared(blocks: Float64[np.ndarray, "blocks 3 2"], kind: int, seed: int) -> Seams | None:
    sums = blocks[:, [kind, 2]]
    if not (sums[:, :, 1].sum(axis=0) > 0).all() or sums[:, 1, 0].sum() == 0:
        return None
    means = sums[:, :, 0].sum(axis=0) / sums[:, :, 1].sum(axis=0)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = sums[rng.integers(0, len(sums), len(sums))].sum(axis=0)
        valid: Bool[np.ndarray, " 2"] = drawn[:, 1] > 0
        if valid.all() and drawn[1, 0] > 0:
            ratios.append((drawn[0, 0] / drawn[0, 1]) / (drawn[1, 0] / drawn[1, 1]))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Seams(float(means[0] / means[1]), float(low), float(high), float(means[0]), float(means[1]), len(sums))
