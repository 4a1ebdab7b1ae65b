"""`parquet`: tables with the bytes of an image file in each row, as Hugging Face publishes its data sets.

The images are the column `columns.image`, or the only one of type binary or struct with a field `bytes` (Hugging
Face's `Image`). Other columns go by name, `a.b` for a field of a struct. Numbers of a Hugging Face `ClassLabel` become
the names that the table's own metadata gives them; −1 is no label. A unit is a range of row groups.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hdtrain.errors import DataError
from sharding.inputs import Broken, Content, Held, Input
from sharding.readers.base import Unit
from sharding.readers.records import RecordReader, row_input, row_number, stem_prefix

_BATCH_ROWS = 64
_BATCH_BYTES = 32 * 2**20
_BUFFER_BYTES = 2**20


class ParquetReader(RecordReader):
    """A Parquet file, or a folder with such files at any depth."""

    suffixes = frozenset({".parquet"})
    kind = "Parquet"

    @cached_property
    def classes(self) -> list[str] | None:
        """The names of the first file's `ClassLabel`, sorted."""
        column = self.source.config.columns.label
        if column is None:
            return None
        with _opened(next(iter(self.files.values()))) as table:
            return sorted(_class_names(table.schema_arrow, column)) or None

    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """Row groups, as many as make up a unit; raises DataError for columns that are missing or not plain."""
        with _opened(file) as table:
            self._columns(file, table.schema_arrow)
            start = count = 0
            for group in range(table.num_row_groups):
                count += table.metadata.row_group(group).num_rows
                if count >= self.unit_inputs or (count and group == table.num_row_groups - 1):
                    yield Unit(path, start, group + 1, count)
                    start, count = group + 1, 0

    def read(self, unit: Unit) -> Iterator[Input]:
        """Row by row, a small batch at a time."""
        file = self.file(unit)
        with _opened(file) as table:
            columns = self._columns(file, table.schema_arrow)
            names = _class_names(table.schema_arrow, columns.get("label", ""))
            groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
            row, count = sum(group.num_rows for group in groups[: unit.start]), table.metadata.num_rows
            try:
                for record in _records(table, unit, list(columns.values())):
                    fields = {field: _value(record, column) for field, column in columns.items()}
                    content = _image(fields.pop("image"))
                    if names:
                        fields["label"] = _class_name(file, names, fields["label"])
                    number = row_number(row, count)
                    stem = "-".join(part for part in (stem_prefix(unit), number) if part)
                    yield row_input(self.source, f"{self.shown(unit)}[{row}]", stem, content, fields)
                    row += 1
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file}: damaged at row {row} or after it: {error}") from None

    def _columns(self, file: Path, schema: pa.Schema) -> dict[str, str]:
        """The columns by field, `image` among them."""
        image = self.source.config.columns.image
        if image is None:
            fitting = [field.name for field in schema if _holds_images(field.type)]
            if len(fitting) != 1:
                what = f"several columns of bytes ({', '.join(fitting)})" if fitting else "no column of image bytes"
                raise DataError(f"{file}: {what}; name one in columns.image; it has {_list(schema)}")
            (image,) = fitting
        for field, name in {**self.columns, "image": image}.items():
            if _type_of(schema, name) is None:
                raise DataError(f"{file}: no column '{name}' (columns.{field}); it has {_list(schema)}")
        if not _holds_images(_type_of(schema, image)):
            raise DataError(f"{file}: column '{image}' (columns.image) is {_type_of(schema, image)}, expected bytes")
        return {**self.columns, "image": image}


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file, truncated or unreadable: {error}") from None


def _records(table: pq.ParquetFile, unit: Unit, columns: list[str]) -> Iterator[dict[str, Any]]:
    groups = range(unit.start, table.num_row_groups if unit.stop is None else unit.stop)
    described = [table.metadata.row_group(group) for group in groups]
    row_bytes = sum(group.total_byte_size for group in described) // max(1, sum(group.num_rows for group in described))
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
    for batch in table.iter_batches(batch_rows, row_groups=list(groups), columns=columns, use_threads=False):
        yield from batch.to_pylist()


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column or of a field of a struct (`a.b`); None where there is none."""
    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    kind = schema.field(first).type if first in schema.names else None
    for part in rest:
        index = kind.get_field_index(part) if kind is not None and pa.types.is_struct(kind) else -1
        kind = kind.field(index).type if kind is not None and index >= 0 else None
    return kind


def _value(record: dict[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    return value


def _image(value: Any) -> Content:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return Broken("no bytes in the table, only the path of a file")
        value = value.get("bytes")
    return Broken("no image in the row") if value is None else Held(value)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """What a Hugging Face `ClassLabel` calls its numbers; empty where the column is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else []
    except (KeyError, TypeError, ValueError):
        return []


def _class_name(file: Path, names: list[str], label: Any) -> str | None:
    if label is None or label == -1:
        return None
    if isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    raise DataError(f"{file}: label {label!r}, but its metadata name {len(names)} classes")


def _list(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
