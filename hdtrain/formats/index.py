"""`index.parquet`: one row a sample, rejected ones included."""

import contextlib
from pathlib import Path
from types import TracebackType

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
        ("duplicate_of", pa.string()),
        ("pixels_id", pa.binary(16)),
    ]
)
"""`status`: ok, rejected (unreadable, refused by rule, or a duplicate), unused (readable, not drawn) or background (no
tissue). `pixels_id`: digest of the pixels that turned and mirrored copies share, to find them across data sets."""


class IndexWriter:
    """Write an index table by table; leaving the `with` block publishes it, an exception leaves nothing behind.

    `writer` as in `atomic_file`.
    """

    def __init__(self, path: Path, writer: str = ""):
        self._stack = contextlib.ExitStack()
        self._path, self._name = path, writer

    def __enter__(self) -> "IndexWriter":
        stream = self._stack.enter_context(atomic_file(self._path, self._name))
        self._writer = self._stack.enter_context(pq.ParquetWriter(stream, SCHEMA))
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows of the schema."""
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
