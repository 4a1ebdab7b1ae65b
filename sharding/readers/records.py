"""What the layouts of many images a file share: finding the files, and turning columns into an input's fields."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hdtrain.errors import DataError
from sharding.inputs import Broken, Content, Input
from sharding.readers.base import UNIT_INPUTS, Reader, Source, Unit, as_text, file_state
from sharding.readers.tree import FolderTree

NUMBER_CHARS = 6
"""Rows are numbered with at least so many digits, all of a file with as many, so that keys sort as rows do."""


class RecordReader(Reader):
    """A file of many images, or a folder with such files at any depth."""

    suffixes: ClassVar[frozenset[str]]
    kind: ClassVar[str]
    """What the files are, for messages."""
    unit_inputs = UNIT_INPUTS

    @cached_property
    def files(self) -> dict[str, Path]:
        """By their paths in the source, '' being the source itself; raises DataError where there is none."""
        root = self.source.path
        if not root.is_dir():
            return {"": root}
        found = {as_text(name): root / name for name in FolderTree(root, self.suffixes).files() if self.is_wanted(name)}
        if not found:
            raise DataError(
                f"{root}: no {self.kind} files; expected names ending in {', '.join(sorted(self.suffixes))}"
            )
        return found

    @cached_property
    def columns(self) -> dict[str, str]:
        """The configured columns by field, without the image's."""
        columns = self.source.config.columns.model_dump(exclude={"image"})
        return {field: column for field, column in columns.items() if column is not None}

    def is_wanted(self, name: str) -> bool:
        """Whether a file of the right suffix holds images."""
        return True

    def units(self) -> Iterator[Unit]:
        """File by file."""
        for path, file in self.files.items():
            yield from self.file_units(path, file)

    @abstractmethod
    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """The units of one file; raises DataError where it cannot be read as this layout."""

    def file(self, unit: Unit) -> Path:
        """The unit's file."""
        return self.files[unit.path] if unit.path in self.files else self.source.path / unit.path

    def shown(self, unit: Unit) -> str:
        """The unit's file as the index shows it."""
        return unit.path or as_text(self.source.path.name)

    def state(self, unit: Unit) -> Any:
        """Size and time of change of the unit's file."""
        return file_state(self.file(unit))


def stem_prefix(unit: Unit) -> str:
    """What stands before a row in its stem: the file without its suffix, nothing where there is only one file."""
    return unit.path.rpartition(".")[0]


def row_number(row: int, count: int) -> str:
    """`000017` of `count` rows."""
    return f"{row:0{max(NUMBER_CHARS, len(str(count - 1)))}d}"


def row_input(source: Source, path: str, stem: str, content: Content, row: Mapping[str, Any]) -> Input:
    """The input of one row.

    Args:
        source: its `mpp` and `pattern` fill what the row does not say.
        path: where it is; named in errors.
        stem: what its key is made of.
        content: its image.
        row: values by field, as the file has them.

    Raises:
        DataError: a value is not of its field's kind.
    """
    known = {field: field_value(source, path, field, value) for field, value in row.items()}
    fields: dict[str, Any] = {field: value for field, value in known.items() if value is not None}
    if "label" in row and "label" not in fields and not isinstance(content, Broken):
        content = Broken("no label")
    config = source.config
    fields = {"mpp": config.mpp, "min_tissue": config.min_tissue} | source.fields(path) | fields
    return Input(path, stem, content, **fields)


def field_value(source: Source, path: str, field: str, value: Any) -> str | int | float | None:
    """A column's value as the field's type: text (numbers as text, whole ones without a point), int or float.

    None for null, NaN and ''.

    Raises:
        DataError: it is not of that kind.
    """
    found = plain(value) if value is not None else None
    if found is None or found == "" or (isinstance(found, float) and math.isnan(found)):
        return None
    convert, wanted = _CONVERT[field]
    try:
        return convert(found)
    except (TypeError, ValueError, OverflowError):
        column = getattr(source.config.columns, field) or field
        raise DataError(
            f"{source.path}: {path}: '{column}' holds {found!r}, expected {wanted} as the {field}"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(value: Any) -> int:
    whole = int(value)
    if whole != (float(value) if isinstance(value, str) else value):
        raise ValueError(value)
    return whole


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(value)
    return number


_CONVERT: dict[str, tuple[Callable[[Any], str | int | float], str]] = {
    **dict.fromkeys(("label", "slide", "patient"), (_text, "a text or a number")),
    **dict.fromkeys(("x", "y"), (_whole, "a whole number")),
    "mpp": (_positive, "a number above 0"),
}


def plain(value: Any) -> Any:
    """NumPy's single values, arrays of one value and bytes as Python's."""
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
