"""`index.parquet` of embeddings: a row a record, with the cell of its slide's grid."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from hdtrain.data.tile_places import NONE, TilePlaces
from hdtrain.formats.atomic import write_through
from hdtrain.formats.shards import Sidecar, sidecar_path

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("record", pa.int64()),
        ("slide", pa.string()),
        ("row", pa.int64()),
        ("column", pa.int64()),
        ("x", pa.int64()),
        ("y", pa.int64()),
        ("mpp", pa.float64()),
        ("label", pa.string()),
    ]
)


@dataclass(frozen=True)
class SlideGrid:
    """A slide with tiles among the embeddings."""

    name: str
    rows: int
    columns: int
    present: int
    """Cells with an embedding."""

    def __str__(self) -> str:
        share = self.present / (self.rows * self.columns)
        return f"slide {self.name}: {self.rows} rows × {self.columns} columns, {share:.1%} present"


def write_index(
    path: Path,
    parts: Sequence[Path],
    places: TilePlaces,
    classes: Sequence[str] | None,
    mpp: Mapping[str, float | None],
) -> tuple[list[SlideGrid], dict[str, str]]:
    """Write the index; return the grids in the order of their names, and why other slides have none.

    Args:
        path: the index.
        parts: record shards, one for each shard of images, in order.
        places: of the tiles.
        classes: names of the labels.
        mpp: of a slide's images as they were embedded; of images of no slide it is the input's.
    """
    sidecars = [Sidecar.read(sidecar_path(part)) for part in parts]
    found = [places.find(number, sidecar.keys) for number, sidecar in enumerate(sidecars)]
    rows = np.concatenate([np.empty(0, np.int64), *found])
    codes, row, column = (
        np.append(values, NONE)[rows] for values in (places.slide_codes, places.row, places.column)
    )  # row −1 is the last one
    why = {name: places.off_lattice[name] for name in _names(places, codes) if name in places.off_lattice}
    twice = _shared_cells(codes, row, column)
    for code, count in Counter(codes[twice].tolist()).items():
        name = places.slides[code]
        why[name] = (
            f"slide '{name}': {count} tiles lie where another one does: regions of the slide that count their places "
            "from the same corner, or data sets of several resolutions"
        )
    kept = (row != NONE) & ~np.isin(codes, np.unique(codes[twice]))
    _write(path, parts, sidecars, rows, np.where(kept, row, NONE), np.where(kept, column, NONE), places, classes, mpp)
    counts = Counter(codes[kept].tolist())
    grids = [
        SlideGrid(name, places.lattices[name].rows, places.lattices[name].columns, counts[code])
        for name, code in sorted((places.slides[code], code) for code in counts)
    ]
    return grids, dict(sorted(why.items()))


def _names(places: TilePlaces, codes: Int64[np.ndarray, " n"]) -> list[str]:
    return [places.slides[code] for code in np.unique(codes).tolist() if code != NONE]


def _shared_cells(
    codes: Int64[np.ndarray, " n"], row: Int64[np.ndarray, " n"], column: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which images share their cell with another one."""
    cells = np.stack([codes, row, column], axis=1)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    shared: np.ndarray = (counts[inverse.reshape(-1)] > 1) & (row != NONE)
    return shared


def _write(
    path: Path,
    parts: Sequence[Path],
    sidecars: Sequence[Sidecar],
    rows: Int64[np.ndarray, " n"],
    row: Int64[np.ndarray, " n"],
    column: Int64[np.ndarray, " n"],
    places: TilePlaces,
    classes: Sequence[str] | None,
    mpp: Mapping[str, float | None],
) -> None:
    labels = [label for sidecar in sidecars for label in sidecar.labels]
    taken = places.table.take(pa.array(rows, mask=rows == NONE))
    slides, inputs_mpp = taken["slide"].to_pylist(), taken["mpp"].to_pylist()
    columns = {
        "key": [key for sidecar in sidecars for key in sidecar.keys],
        "shard": [part.name for part, sidecar in zip(parts, sidecars, strict=True) for _ in sidecar.keys],
        "record": [number for sidecar in sidecars for number in range(sidecar.samples)],
        **{name: taken[name] for name in ("slide", "x", "y")},
        "mpp": [mpp.get(slide, own) for slide, own in zip(slides, inputs_mpp, strict=True)],
        "row": pa.array(row, mask=row == NONE),
        "column": pa.array(column, mask=column == NONE),
        "label": [classes[label] if classes and label is not None else None for label in labels],
    }
    table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
    write_through(path, lambda temporary: pq.write_table(table, temporary))
