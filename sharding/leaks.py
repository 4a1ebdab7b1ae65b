"""What two data sets must not share: patients, slides, keys, and images in any orientation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir

_SHARED = {"patient": "patient", "slide": "slide", "key": "key", "pixels_id": "image (turned or mirrored copies too)"}
_SHOWN = 3


def find_leaks(directory: Path, manifest: Manifest, others: Sequence[tuple[Path, Manifest]]) -> Iterator[str]:
    """A line for every kind of thing that `directory` shares with another data set, naming the first ones."""
    if not others:
        return
    without = [path for path in (directory, *(path for path, _ in others)) if not RunDir(path).index.exists()]
    yield from (f"{path}: no {RunDir(path).index.name}, so it cannot be compared" for path in without)
    mine = _packed(directory) if directory not in without else None
    for path, other in others if mine is not None else ():
        if path in without:
            continue
        theirs = _packed(path)
        for column, what in _SHARED.items():
            yield from _shared(column, what, (directory, manifest, mine), (path, other, theirs))


def _shared(
    column: str, what: str, one: tuple[Path, Manifest, pa.Table], other: tuple[Path, Manifest, pa.Table]
) -> Iterator[str]:
    values = pc.unique(one[2][column].drop_null())
    both = values.filter(pc.is_in(values, value_set=pc.unique(other[2][column].drop_null())))
    if not len(both):
        return
    names = both.slice(0, _SHOWN).to_pylist()
    if column == "pixels_id":
        names = one[2].filter(pc.is_in(one[2][column], value_set=both))["key"].slice(0, _SHOWN).to_pylist()
    more = " …" if len(both) > _SHOWN else ""
    yield (
        f"leak: {len(both)} {what}{'s' if len(both) > 1 else ''} of {one[0]} ({one[1].split}) "
        f"also in {other[0]} ({other[1].split}): {', '.join(names)}{more}"
    )


def _packed(directory: Path) -> pa.Table:
    """The index's rows that are in shards, of the columns to compare."""
    table = pq.read_table(RunDir(directory).index, columns=[*_SHARED, "status"])
    return table.filter(pc.equal(table["status"], "ok"))
