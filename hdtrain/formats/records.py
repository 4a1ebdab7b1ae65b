"""Record shards: fixed-shape fp16 arrays packed many to a tar member, mmap-able at an offset.

A member `FIRST.records.npy` is one `.npy` of shape (n, …) and `FIRST.records.json` lists its keys and labels, so that
numpy and WebDataset read them too; the sidecar knows where each array begins.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hdtrain.formats.atomic import canonical_json
from hdtrain.formats.shards import ShardReader, ShardWriter


def write_record_shard(
    path: Path, records: np.ndarray, keys: Sequence[str], labels: Sequence[int | None], per_member: int
) -> None:
    """Publish `records` (n, …) with one key and label each; key i belongs to record i."""
    with ShardWriter(path) as writer:
        for first in range(0, len(records), per_member):
            part = slice(first, first + per_member)
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(records[part]))
            data = buffer.getvalue()
            shape = list(records[part].shape)
            header = len(data) - records[part].nbytes
            offset = writer.add_member(f"{first:08d}.records.npy", data) + header
            listing = {"keys": list(keys[part]), "labels": list(labels[part])}
            writer.add_member(f"{first:08d}.records.json", canonical_json(listing))
            writer.sidecar.records.append({"offset": offset, "shape": shape, "dtype": records.dtype.str})
        writer.sidecar.keys, writer.sidecar.labels = list(keys), list(labels)
        writer.sidecar.samples = len(records)


class RecordReader(ShardReader):
    """A record shard through mmap."""

    def arrays(self) -> list[np.ndarray]:
        """The members' arrays, views of the map, in order."""
        return [
            np.frombuffer(
                self.view, dtype=member["dtype"], count=int(np.prod(member["shape"])), offset=member["offset"]
            ).reshape(member["shape"])
            for member in self.sidecar.records
        ]
