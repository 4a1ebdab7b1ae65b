"""A sweep: lists and ranges over keys of one stage, every combination a run of its own."""

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hdtrain.config.base import Config

MAX_RUNS = 1000
_UNFIT = re.compile(r"[^A-Za-z0-9_.,=+-]+")


class Range(Config):
    """`{from: 1e-5, to: 1e-3, num: 5, scale: log}`: `num` values, both ends included."""

    start: float = Field(alias="from")
    to: float
    num: int = Field(ge=2, le=MAX_RUNS)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _log_of_positive(self) -> "Range":
        if self.scale == "log" and min(self.start, self.to) <= 0:
            raise ValueError(f"scale: log wants numbers above 0, got {self.start:g} to {self.to:g}")
        return self

    @property
    def values(self) -> list[float | int]:
        """Rounded to 4 significant digits; whole numbers stay whole."""
        shares = [index / (self.num - 1) for index in range(self.num)]
        if self.scale == "log":
            found = [self.start * (self.to / self.start) ** share for share in shares]
        else:
            found = [self.start + (self.to - self.start) * share for share in shares]
        rounded = [float(f"{value:.4g}") for value in found]
        ends = float(self.start).is_integer() and float(self.to).is_integer()
        return [int(value) for value in rounded] if ends and all(v.is_integer() for v in rounded) else rounded  # type: ignore[return-value]


def _form(value: Any) -> str:
    return "Range" if isinstance(value, dict | Range) else "list"


Values = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("Range")],
    Discriminator(_form),
]
"""A list, or a range: what is wrong with one is told of that one alone."""


class SweepFile(Config):
    """The file as written."""

    keys: dict[str, Values] = Field(min_length=1)
    """Dotted key of the stage's config to its values."""
    combine: Literal["grid", "zip"] = "grid"
    """`grid`: every combination; `zip`: the first of all, the second of all, …"""

    @model_validator(mode="after")
    def _countable(self) -> "SweepFile":
        sizes = {key: len(values_of(values)) for key, values in self.keys.items()}
        empty = [key for key, size in sizes.items() if not size]
        if empty:
            raise ValueError(f"keys.{empty[0]}: expected at least one value")
        if self.combine == "zip" and len(set(sizes.values())) > 1:
            raise ValueError(f"combine: zip wants as many values for every key, got {sizes}")
        runs = math.prod(sizes.values()) if self.combine == "grid" else max(sizes.values())
        if runs > MAX_RUNS:
            raise ValueError(f"keys: {runs:,} runs, and {MAX_RUNS:,} is the most")
        return self


def values_of(values: "list[Any] | Range") -> list[Any]:
    """As a list."""
    return values.values if isinstance(values, Range) else values


def combinations(sweep: SweepFile) -> dict[str, dict[str, Any]]:
    """Run name, such as `000-lr=0.0001`, to the values of the keys."""
    columns = [values_of(values) for values in sweep.keys.values()]
    rows = itertools.product(*columns) if sweep.combine == "grid" else zip(*columns, strict=True)
    return {
        _name(index, dict(zip(sweep.keys, row, strict=True))): dict(zip(sweep.keys, row, strict=True))
        for index, row in enumerate(rows)
    }


def _name(index: int, values: dict[str, Any]) -> str:
    said = ",".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in values.items())
    return f"{index:03d}-{_UNFIT.sub('_', said)}"[:80].rstrip(",.=_")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
