"""Where the tiles of image data sets lie in their slides: from `index.parquet`, with rows and columns.

The rows of background and of what was not packed count too, so that a slide's lattice is that of the whole slide.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from hdtrain.errors import DataError
from hdtrain.formats.lattice import Lattice, find_lattice
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir

NONE = -1
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("slide", pa.string()),
        ("x", pa.int64()),
        ("y", pa.int64()),
        ("mpp", pa.float64()),
        ("shard", pa.string()),
    ]
)


class TilePlaces:
    """The places of all inputs of some data sets, a row each.

    Args:
        datasets: run directories of kind `images` with their manifests; one without an index of tiles has no places.
    """

    def __init__(self, datasets: Sequence[tuple[Path, Manifest]]):
        tables = [_index(directory, manifest) for directory, manifest in datasets]
        self.table: pa.Table = pa.concat_tables(tables).combine_chunks()
        self.shard = _shard_numbers(datasets, tables)
        """Number of the shard that each row is in, counted over all data sets; −1: in none."""
        self._by_shard = np.argsort(self.shard, kind="stable")
        self.lattices: dict[str, Lattice] = {}
        self.off_lattice: dict[str, str] = {}
        """Slides whose tiles lie on no regular lattice, and why."""
        self.row = np.full(len(self.table), NONE, np.int64)
        self.column = self.row.copy()
        self._place()

    def find(self, shard: int, keys: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """Row of each key of a shard; −1 where it has none."""
        first, end = np.searchsorted(self.shard, [shard, shard + 1], sorter=self._by_shard)
        rows = self._by_shard[first:end]
        if not len(rows):
            return np.full(len(keys), NONE, np.int64)
        known = self.table["key"].take(pa.array(rows)).combine_chunks()
        found = pc.fill_null(pc.index_in(pa.array(keys, pa.string()), value_set=known), NONE)
        return np.append(rows, NONE)[found.to_numpy(zero_copy_only=False)]

    @cached_property
    def slides(self) -> list[str]:
        """Names, in the order of their codes."""
        return [str(slide) for slide in self._coded.dictionary.to_pylist()]

    @cached_property
    def slide_codes(self) -> Int64[np.ndarray, " n"]:
        """Which slide each row is of; −1: none that is known."""
        codes = pc.fill_null(self._coded.indices, NONE)
        return codes.to_numpy(zero_copy_only=False).astype(np.int64)

    @cached_property
    def _coded(self) -> pa.DictionaryArray:
        column = self.table["slide"].dictionary_encode().combine_chunks()
        return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column

    def _place(self) -> None:
        """Rows and columns, slide by slide."""
        placed = pc.and_(pc.is_valid(self.table["x"]), pc.is_valid(self.table["y"])).to_numpy()
        codes = np.where(placed, self.slide_codes, NONE)
        x, y = (pc.fill_null(self.table[axis], 0).to_numpy() for axis in ("x", "y"))
        if not len(codes):
            return
        order = np.argsort(codes, kind="stable")
        found, starts = np.unique(codes[order], return_index=True)
        for code, of in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            if code == NONE:
                continue
            name = self.slides[code]
            try:
                self.lattices[name] = lattice = find_lattice(x[of], y[of], f"slide '{name}'")
            except DataError as error:
                self.off_lattice[name] = str(error)
                continue
            self.row[of], self.column[of] = lattice.cells(x[of], y[of])


def _index(directory: Path, manifest: Manifest) -> pa.Table:
    """Key, slide, place and shard of every input; empty where the data set has no such index."""
    path = RunDir(directory).index
    if path.name not in manifest.files:
        return _SCHEMA.empty_table()
    if not set(_SCHEMA.names) <= set(pq.read_schema(path).names):  # of a selection
        return _SCHEMA.empty_table()
    return pq.read_table(path, columns=_SCHEMA.names).cast(_SCHEMA)


def _shard_numbers(datasets: Sequence[tuple[Path, Manifest]], tables: Sequence[pa.Table]) -> Int64[np.ndarray, " n"]:
    numbers, before = [np.empty(0, np.int64)], 0
    for (_, manifest), table in zip(datasets, tables, strict=True):
        names = pa.array([Path(entry.name).name for entry in manifest.shards], pa.string())
        found = pc.fill_null(pc.index_in(table["shard"], value_set=names), NONE).to_numpy().astype(np.int64)
        numbers.append(np.where(found == NONE, NONE, before + found))
        before += len(manifest.shards)
    return np.concatenate(numbers)
