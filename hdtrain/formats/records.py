"""Record shards: fixed-shape fp16 arrays packed many to a tar member, each at a known offset.

A member `FIRST.records.npy` is one `.npy` of shape (n, …) and `FIRST.records.json` lists its keys and labels, so that
numpy and WebDataset read them too; the sidecar knows where each array begins.
"""

import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import canonical_json
from hdtrain.formats.shards import ShardReader, ShardWriter


def write_record_shard(
    path: Path,
    records: np.ndarray,
    keys: Sequence[str],
    labels: Sequence[int | None],
    per_member: int,
    failed: Mapping[str, int] | None = None,
    writer: str = "",
) -> None:
    """Publish `records` (n, …) with one key and label each; key i belongs to record i.

    Args:
        path: the tar.
        records: fixed-shape arrays.
        keys: one a record.
        labels: one a record, None where unlabelled.
        per_member: records in one tar member.
        failed: inputs that gave no record, by reason.
        writer: of `ShardWriter`.
    """
    with ShardWriter(path, writer) as shard:
        for first in range(0, len(records), per_member):
            part = slice(first, first + per_member)
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(records[part]))
            data = buffer.getvalue()
            shape = list(records[part].shape)
            header = len(data) - records[part].nbytes
            offset = shard.add_member(f"{first:08d}.records.npy", data) + header
            listing = {"keys": list(keys[part]), "labels": list(labels[part])}
            shard.add_member(f"{first:08d}.records.json", canonical_json(listing))
            shard.sidecar.records.append({"offset": offset, "shape": shape, "dtype": records.dtype.str})
        shard.sidecar.keys, shard.sidecar.labels = list(keys), list(labels)
        shard.sidecar.samples = len(records)
        shard.sidecar.failed = dict(failed or {})


class RecordReader(ShardReader):
    """A record shard."""

    @cached_property
    def record(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of one record.

        Raises:
            ShardError: its members hold records of different shapes.
        """
        kinds = {(member["dtype"], tuple(member["shape"][1:])) for member in self.sidecar.records}
        if len(kinds) != 1:
            raise ShardError(f"{self.path}: expected records of one dtype and shape, its sidecar lists {len(kinds)}")
        dtype, shape = kinds.pop()
        return np.dtype(dtype), shape

    @cached_property
    def offsets(self) -> Int64[np.ndarray, " n"]:
        """Where each record begins in the tar."""
        dtype, shape = self.record
        size = dtype.itemsize * math.prod(shape)
        return np.concatenate(
            [member["offset"] + size * np.arange(member["shape"][0], dtype=np.int64) for member in self.sidecar.records]
        )

    def gather(self, indices: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        """Read the records `indices` into the rows `rows` of `out` (n, …), straight into place.

        Raises:
            ShardError: the shard is missing, unreadable, truncated, or holds other records than `out`.
        """
        if self.record != (out.dtype, out.shape[1:]):
            raise ShardError(f"{self.path}: holds records {self.record}, expected {(out.dtype, out.shape[1:])}")
        self.file.read_rows(out, rows.tolist(), self.offsets[indices].tolist(), "a record")

    def keep_offsets(self) -> None:
        """Read the sidecar, and keep of it what `gather` needs: 8 bytes a record, where its keys may be a hundred.

        Raises:
            ShardError: the shard is missing or unreadable.
        """
        _ = self.offsets, self.file
        del self.sidecar

    def arrays(self) -> list[np.ndarray]:
        """The members' arrays, in order.

        Raises:
            ShardError: the shard is missing, unreadable or truncated.
        """
        found = []
        for number, member in enumerate(self.sidecar.records):
            found.append(np.empty(member["shape"], member["dtype"]))
            self.file.read_into(found[-1], member["offset"], f"member {number}")
        return found

    def close(self) -> None:
        """As of every shard."""
        super().close()
        for name in ("record", "offsets"):
            self.__dict__.pop(name, None)
