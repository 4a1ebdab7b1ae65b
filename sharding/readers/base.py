"""What every reader is: a source, cut into units of work, each of which gives its inputs in a fixed order.

`units` is cheap (it lists folders and reads headers) and runs in one process; the units are then shared out over all
processes and machines, and `read` does the rest. The concatenation of all units' inputs is the order of the corpus.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdtrain.config.shards import SourceConfig
from hdtrain.errors import DataError
from sharding.images import Alpha
from sharding.inputs import Input

UNIT_INPUTS = 2048
"""Inputs a unit, about: a process that is killed loses the work on one."""
PATTERN_GROUPS = ("slide", "patient", "x", "y")


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a source: the inputs `start` to `stop` of a folder or file, or all of it (`stop` None)."""

    path: str
    """The folder or file, relative to the source; '' is the source itself."""
    start: int = 0
    stop: int | None = None
    num_inputs: int = 1
    """For the progress display; may be an estimate."""


@dataclass(frozen=True)
class Source:
    """A configured source, and what every layout needs to read it."""

    config: SourceConfig
    alpha: Alpha = "white"

    @property
    def path(self) -> Path:
        """The folder or file."""
        return self.config.path

    @property
    def name(self) -> str:
        """The configured name, else the folder's or the file's (without its suffix)."""
        return as_text(self.config.name or (self.path.name if self.path.is_dir() else self.path.stem)) or "source"

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """The compiled `pattern`; raises DataError."""
        if self.config.pattern is None:
            return None
        where = f"source '{self.name}': pattern '{self.config.pattern}'"
        try:
            pattern = re.compile(self.config.pattern)
        except re.error as error:
            raise DataError(f"{where} is not a regular expression: {error}") from None
        if not pattern.groupindex or not set(pattern.groupindex) <= set(PATTERN_GROUPS):
            found = ", ".join(pattern.groupindex) or "none"
            raise DataError(f"{where}: expected named groups out of {', '.join(PATTERN_GROUPS)}, got {found}")
        return pattern

    def fields(self, path: str) -> dict[str, Any]:
        """`slide`, `patient`, `x`, `y` that `pattern` finds in the file's name; empty where it does not match."""
        match = self.pattern.search(path.rpartition("/")[2]) if self.pattern else None
        fields: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v is not None} if match else {}
        for axis in {"x", "y"} & fields.keys():
            try:
                fields[axis] = int(fields[axis])
            except ValueError:
                raise DataError(
                    f"{self.path}: {path}: pattern group '{axis}' found '{fields[axis]}', expected a whole number"
                ) from None
        return fields


class Reader(ABC):
    """A source, opened. Safe to make anew in every process; `read` is used by one thread at a time."""

    def __init__(self, source: Source):
        self.source = source

    @property
    def classes(self) -> list[str] | None:
        """Label names that are known beforehand (class folders), sorted; None where there are none."""
        return None

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """The whole source in a fixed order; raises DataError for what cannot be read as this layout."""

    @abstractmethod
    def state(self, unit: Unit) -> Any:
        """What tells the unit's content from what it was before (names, sizes, times of change), as plain JSON."""

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Input]:
        """The unit's inputs in a fixed order, with nothing decoded that `Content.load` can decode later."""


def file_state(path: Path) -> list[int] | None:
    """Size and time of change in ns, to tell a file from what it was before; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def ranges(path: str, count: int, size: int = UNIT_INPUTS) -> Iterator[Unit]:
    """`count` inputs of one file as units of `size`."""
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield Unit(path, start, stop, stop - start)


def as_text(name: str) -> str:
    """A file name as UTF-8; bytes that are none are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
