"""`index.parquet`: a row for every input, batch by batch, so that a corpus of any size fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hdtrain.formats.index import SCHEMA, IndexWriter
from hdtrain.formats.run_dir import RunDir
from sharding.duplicates import DIGEST_BYTES
from sharding.plan import DUPLICATE_KINDS, Plan
from sharding.split import NONE
from sharding.table import REJECTED, STATUS_NAMES, Rows
from sharding.write import split_dir

_SAME = ("path", "slide", "patient", "x", "y", "mpp", "label")


def index_files(run: RunDir, splits: list[str]) -> list[Path]:
    """The run's index; with several splits also one a split."""
    return [run.index, *(split_dir(run, splits, name).index for name in splits if len(splits) > 1)]


def write_indices(run: RunDir, rows: Rows, plan: Plan, source_names: list[str], process: str = "") -> None:
    """Everything in the run's index; with several splits also one a split, with what was packed there.

    `process` tells processes apart that may write the same files.
    """
    with IndexWriter(run.index, process) as writer:
        for table in _tables(rows, plan, source_names):
            writer.write(table)
    if len(plan.splits) == 1:
        return
    for name in plan.splits:
        with IndexWriter(split_dir(run, plan.splits, name).index, process) as writer:
            for table in _tables(rows, plan, source_names):
                packed = pc.and_(pc.equal(table["split"], name), pc.is_valid(table["shard"]))
                writer.write(table.filter(packed))


def _tables(rows: Rows, plan: Plan, source_names: list[str]) -> Iterator[pa.Table]:
    """The index, a batch at a time: whole columns, and single rows only where one is renamed or a copy."""
    renamed = np.array(sorted(plan.renamed), np.int64)
    for start, batch in rows.batches():
        stop = start + batch.num_rows
        here = slice(start, stop)
        keys = batch.column("key")
        if changed := renamed[slice(*np.searchsorted(renamed, [start, stop]))].tolist():
            keys = _replaced(keys, {number - start: plan.renamed[number] for number in changed})
        originals = _keys_of(rows, plan, plan.duplicate_of[here])
        reasons = {
            place: f"{DUPLICATE_KINDS[plan.duplicate_kind[start + place]]} {original}"
            for place, original in originals.items()
            if plan.status[start + place] == REJECTED
        }
        shards, places = np.unique(plan.shard[here], return_inverse=True)
        names = [f"shard-{number:06d}.tar" if number != NONE else None for number in shards.tolist()]
        columns: dict[str, Any] = {name: batch.column(name) for name in _SAME}
        columns |= {
            "key": keys,
            "source": _looked_up(source_names, batch.column("source").to_numpy()),
            "split": _looked_up([*plan.splits, None], plan.split[here]),
            "shard": _looked_up(names, places),
            "status": _looked_up(list(STATUS_NAMES), plan.status[here]),
            "reason": _replaced(batch.column("reason"), reasons),
            "duplicate_of": _replaced(pa.nulls(batch.num_rows, pa.string()), originals),
            "pixels_id": _without_zeros(batch.column("pixels")),
        }
        yield pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _looked_up(names: list[str] | list[str | None], codes: NDArray[Any]) -> pa.Array:
    """The name of every code; −1 is the last one's."""
    return pa.array(names, pa.string()).take(pa.array(codes % len(names)))


def _replaced(column: pa.Array, values: dict[int, str]) -> pa.Array:
    """The column with other strings at some places."""
    if not values:
        return column
    mask = np.zeros(len(column), bool)
    places = sorted(values)
    mask[places] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array([values[place] for place in places], pa.string()))


def _without_zeros(digests: pa.Array) -> pa.Array:
    """Null for what has no pixels."""
    return pc.if_else(pc.equal(digests, pa.scalar(bytes(DIGEST_BYTES), digests.type)), None, digests)


def _keys_of(rows: Rows, plan: Plan, originals: NDArray[np.int64]) -> dict[int, str]:
    """Place in the batch to the key of the original, for what is a duplicate."""
    places = np.flatnonzero(originals != NONE)
    taken = rows.take(originals[places], ("key",))
    return {
        place: plan.renamed.get(int(original), row["key"])
        for place, original, row in zip(places.tolist(), originals[places].tolist(), taken, strict=True)
    }
