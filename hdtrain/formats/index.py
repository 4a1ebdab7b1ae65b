"""`index.parquet`: one row a sample, rejected ones included."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hdtrain.formats.atomic import atomic_file

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("slide", pa.string()),
        ("patient", pa.string()),
        ("x", pa.int64()),
        ("y", pa.int64()),
        ("mpp", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
"""`status`: ok, rejected (unreadable or refused by rule), unused (readable, not drawn) or background (no tissue)."""


def write_index(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows (missing fields become null) atomically."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    with atomic_file(path) as stream:
        pq.write_table(table, stream)


def read_index(path: Path) -> list[dict[str, Any]]:
    """All rows as dicts."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
