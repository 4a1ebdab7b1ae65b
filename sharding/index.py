"""`index.parquet`: a row for every input, batch by batch, so that a corpus of any size fits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hdtrain.formats.index import SCHEMA, IndexWriter
from hdtrain.formats.run_dir import RunDir
from sharding.plan import DUPLICATE_KINDS, Plan
from sharding.split import NONE
from sharding.table import REJECTED, STATUS_NAMES, Rows
from sharding.write import split_dir

_SAME = ("path", "slide", "patient", "x", "y", "mpp", "label")


def write_indices(run: RunDir, rows: Rows, plan: Plan, source_names: list[str]) -> None:
    """Everything in the run's index; with several splits also one a split, with what was packed there."""
    with IndexWriter(run.index) as writer:
        for table in _tables(rows, plan, source_names):
            writer.write(table)
    if len(plan.splits) == 1:
        return
    for name in plan.splits:
        with IndexWriter(split_dir(run, plan.splits, name).index) as writer:
            for table in _tables(rows, plan, source_names):
                packed = pa.compute.and_(pa.compute.equal(table["split"], name), pa.compute.is_valid(table["shard"]))
                writer.write(table.filter(packed))


def _tables(rows: Rows, plan: Plan, source_names: list[str]) -> Iterator[pa.Table]:
    sources = np.array(source_names, object)
    for start, batch in rows.batches():
        here = slice(start, start + batch.num_rows)
        keys = batch.column("key").to_pylist()
        for number in plan.renamed.keys() & set(range(start, start + batch.num_rows)):
            keys[number - start] = plan.renamed[number]
        split, shard = plan.split[here], plan.shard[here]
        originals = _keys_of(rows, plan, plan.duplicate_of[here])
        reasons = batch.column("reason").to_pylist()
        for place, original in originals.items():
            if plan.status[start + place] == REJECTED:
                reasons[place] = f"{DUPLICATE_KINDS[plan.duplicate_kind[start + place]]} {original}"
        columns: dict[str, Any] = {name: batch.column(name) for name in _SAME}
        columns |= {
            "key": keys,
            "source": sources[batch.column("source").to_numpy()].tolist(),
            "split": [plan.splits[code] if code != NONE else None for code in split.tolist()],
            "shard": [f"shard-{number:06d}.tar" if number != NONE else None for number in shard.tolist()],
            "status": [STATUS_NAMES[code] for code in plan.status[here].tolist()],
            "reason": reasons,
            "duplicate_of": [originals.get(place) for place in range(batch.num_rows)],
            "pixels_id": [digest.hex() if any(digest) else None for digest in batch.column("pixels").to_pylist()],
        }
        yield pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _keys_of(rows: Rows, plan: Plan, originals: NDArray[np.int64]) -> dict[int, str]:
    """Place in the batch to the key of the original, for what is a duplicate."""
    places = np.flatnonzero(originals != NONE)
    taken = rows.take(originals[places], ("key",))
    return {
        place: plan.renamed.get(int(original), row["key"])
        for place, original, row in zip(places.tolist(), originals[places].tolist(), taken, strict=True)
    }
