"""Rows and columns of tiles from their x and y.

The rule, for each slide and axis: the step is the smallest distance between two places that occur, made exact by all
the others; every place must then lie within a pixel of first + k · step, since tiles of a resampled slide have rounded
places. x gives the column, y the row, counted from the first place that occurs. An axis with a single place takes the
other one's step. Where that does not work out the tiles lie on no regular lattice, and that is said, not guessed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from hdtrain.errors import DataError

TOLERANCE_PX = 1.0
"""How far a tile may lie beside its place: both ends of a distance are rounded to whole pixels."""
TOLERANCE_SHARE = 0.25
"""The same as a share of the step, for steps of a few pixels."""


@dataclass(frozen=True)
class Lattice:
    """The regular places of a slide's tiles, in pixels of its finest level."""

    first_x: float
    first_y: float
    step_x: float
    step_y: float
    rows: int
    columns: int

    def cells(
        self, x: Int64[np.ndarray, " n"], y: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Row and column of each tile, by its left and top."""
        return _numbers(y, self.first_y, self.step_y), _numbers(x, self.first_x, self.step_x)


def find_lattice(x: Int64[np.ndarray, " n"], y: Int64[np.ndarray, " n"], what: str) -> Lattice:
    """The lattice that tiles with these lefts and tops lie on.

    Args:
        x: left of each tile.
        y: top of each tile.
        what: names the tiles in errors.

    Raises:
        DataError: there is none.
    """
    fits = [_fit(np.unique(places), name, what) for places, name in ((x, "x"), (y, "y"))]
    steps = [step for _, step in fits if step is not None] or [1.0]
    (first_x, step_x), (first_y, step_y) = ((first, step or steps[0]) for first, step in fits)
    lattice = Lattice(first_x, first_y, step_x, step_y, 1, 1)
    rows, columns = lattice.cells(np.asarray(x), np.asarray(y))
    return Lattice(first_x, first_y, step_x, step_y, int(rows.max()) + 1, int(columns.max()) + 1)


def _numbers(places: Int64[np.ndarray, " n"], first: float, step: float) -> Int64[np.ndarray, " n"]:
    return np.rint((places - first) / step).astype(np.int64)


def _fit(places: Int64[np.ndarray, " m"], axis: str, what: str) -> tuple[float, float | None]:
    """First place and step of an axis, from its distinct places in order; no step where there is one place only."""
    if len(places) < 2:
        return float(places[0]), None
    numbers = _count(np.diff(places))
    mean, centre = numbers.mean(), places.mean()
    spread = numbers - mean
    step = float((spread * (places - centre)).sum() / (spread**2).sum())  # least squares: a line through the places
    first = float(centre - step * mean)
    off = np.abs(places - (first + step * numbers))
    worst = int(off.argmax())
    if off[worst] > min(TOLERANCE_PX, TOLERANCE_SHARE * step) or len(np.unique(numbers)) != len(numbers):
        raise DataError(
            f"{what}: the tiles lie on no regular lattice: their smallest distance along {axis} is "
            f"{int(np.diff(places).min())}, and {axis} = {int(places[worst])} is {off[worst]:.1f} beside its multiples "
            f"from {int(places[0])} on; expected places at one distance, as tiles cut with one stride have"
        )
    return first, step


def _count(gaps: Int64[np.ndarray, " m"]) -> Float64[np.ndarray, " m1"]:
    """How many steps each place lies behind the first. The step grows more exact with every gap that was counted."""
    step, total, counted = float(gaps.min()), 0.0, 0.0
    numbers = [0.0]
    exact = gaps[gaps < 1.5 * step]
    step = float(exact.mean())
    for gap in gaps.tolist():
        total += gap
        counted += max(1.0, round(gap / step))
        numbers.append(counted)
        if counted > len(exact):
            step = total / counted
    return np.array(numbers)
