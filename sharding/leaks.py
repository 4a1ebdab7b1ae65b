"""What two data sets must not share: patients, slides, keys, and images in any orientation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir

_SHARED = {
    "patient": ("patient", "patients"),
    "slide": ("slide", "slides"),
    "key": ("key", "keys"),
    "pixels_id": ("image (turned or mirrored copies too)", "images (turned or mirrored copies too)"),
}
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


def comparable(one: Path, other: Path) -> dict[str, list[int]]:
    """How many different patients, slides, keys and images each of two data sets names: of none nothing can be said."""
    tables = [_packed(one), _packed(other)]
    counted = {"patient": "patients", "slide": "slides", "key": "keys", "pixels_id": "images"}
    return {name: [len(pc.unique(table[column].drop_null())) for table in tables] for column, name in counted.items()}


def _shared(
    column: str, what: tuple[str, str], one: tuple[Path, Manifest, pa.Table], other: tuple[Path, Manifest, pa.Table]
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
        f"leak: {len(both)} {what[len(both) > 1]} of {one[0]} ({one[1].split}) "
        f"also in {other[0]} ({other[1].split}): {', '.join(names)}{more}"
    )


def _packed(directory: Path) -> pa.Table:
    """The index's rows that are in shards, of the columns to compare."""
    table = pq.read_table(RunDir(directory).index, columns=[*_SHARED, "status"])
    return table.filter(pc.equal(table["status"], "ok"))
