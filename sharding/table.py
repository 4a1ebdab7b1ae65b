"""What the survey found, as Arrow tables on disk: one part a unit, then one file with a row for every input.

The file is mapped, so a process holds the rows that it looks at and not the corpus.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hdtrain.formats.atomic import atomic_file
from sharding.duplicates import DIGEST_BYTES

_BATCH = 4096
OK, REJECTED, BACKGROUND, UNUSED = range(4)
STATUS_NAMES = ("ok", "rejected", "background", "unused")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("key_hash", pa.uint64()),
        ("source", pa.int32()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("slide", pa.string()),
        ("patient", pa.string()),
        ("x", pa.int64()),
        ("y", pa.int64()),
        ("mpp", pa.float64()),
        ("status", pa.int8()),
        ("reason", pa.string()),
        ("ext", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("content", pa.binary(DIGEST_BYTES)),
        ("pixels", pa.binary(DIGEST_BYTES)),
        ("symmetry", pa.int8()),
        ("look", pa.uint64()),
        ("file", pa.binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("deflated", pa.bool_()),
    ]
)
"""`content`: digest of the bytes to store; `pixels`, `symmetry`, `look`: see `duplicates`; the last four: where those
bytes lie (`file` relative to the work folder for what the survey encoded itself)."""

STORED = ("key", "source", "label", "slide", "patient", "x", "y", "mpp", "ext", "width", "height", "content")
"""The columns that decide what a shard holds."""


def write_part(path: Path, rows: Iterable[dict[str, Any]], writer: str = "") -> None:
    """Publish one unit's rows, which are taken one by one; `writer` as in `atomic_file`."""
    remaining = iter(rows)
    with atomic_file(path, writer) as stream, pa.ipc.new_file(stream, SCHEMA) as table:
        while batch := list(islice(remaining, _BATCH)):
            table.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))


def merge_parts(parts: Iterable[Path], path: Path, writer: str = "") -> None:
    """Publish all parts, in order, as one file; one part is in memory at a time."""
    with atomic_file(path, writer) as stream, pa.ipc.new_file(stream, SCHEMA) as table:
        for part in parts:
            with pa.memory_map(str(part)) as source:
                reader = pa.ipc.open_file(source)
                for index in range(reader.num_record_batches):
                    table.write_batch(reader.get_batch(index))


class Rows:
    """The merged file, mapped: whole columns for the plan, single rows for the writers."""

    def __init__(self, path: Path):
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = [self._reader.get_batch(index).num_rows for index in range(self._reader.num_record_batches)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(row number of its first row, batch)."""
        start = 0
        for index, end in enumerate(self._ends.tolist()):
            yield start, self._reader.get_batch(index)
            start = end

    def column(self, name: str) -> NDArray[Any]:
        """A whole column of numbers (0 for null) or digests."""
        parts = []
        for _, batch in self.batches():
            column = batch.column(name)
            if pa.types.is_fixed_size_binary(column.type):
                parts.append(np.frombuffer(column.buffers()[1], f"V{DIGEST_BYTES}")[: len(column)])
            else:
                parts.append(column.fill_null(0).to_numpy(zero_copy_only=False))
        return np.concatenate(parts)

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A column of strings as codes into a list of its values, in the order of their first row; −1 for null."""
        values: dict[str, int] = {}
        parts = []
        for _, batch in self.batches():
            encoded = batch.column(name).dictionary_encode()
            here = [values.setdefault(value, len(values)) for value in encoded.dictionary.to_pylist()]
            table = np.array([*here, -1], np.int32)
            parts.append(table[encoded.indices.fill_null(len(here)).to_numpy(zero_copy_only=False)])
        return np.concatenate(parts), list(values)

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> list[dict[str, Any]]:
        """These rows, in this order."""
        batches = np.searchsorted(self._ends, rows, side="right")
        taken: list[dict[str, Any]] = [{}] * len(rows)
        for index in np.unique(batches).tolist():
            places = np.flatnonzero(batches == index)
            start = int(self._ends[index - 1]) if index else 0
            batch = self._reader.get_batch(index).select(list(columns)).take(pa.array(rows[places] - start))
            for place, row in zip(places.tolist(), batch.to_pylist(), strict=True):
                taken[place] = row
        return taken
