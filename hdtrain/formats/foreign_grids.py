"""Embeddings that others computed: `.npy`, `.h5`, `.parquet`, `.zarr`, as CLAM, TRIDENT and plain scripts write them.

A file is one slide, called by its name without suffix; a parquet file with a column `slide` may hold several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64

from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.lattice import find_lattice
from hdtrain.text import first_few

FEATURES = ("features", "embeddings", "feats")
COORDS = "coords"
EXTRA = "pip install 'hdtrain[grids]'"
_NOT_FEATURES = ("key", "slide", "shard", "record", "row", "column", "x", "y", "mpp", "label")


@dataclass(frozen=True)
class Cells:
    """Embeddings of one slide, each with its place."""

    name: str
    embeddings: Float[np.ndarray, "n *k d"]
    """Of one token a cell; a run of ours may have several."""
    row: Int64[np.ndarray, " n"]
    column: Int64[np.ndarray, " n"]
    x: Int64[np.ndarray, " n"]
    """−1: not known."""
    y: Int64[np.ndarray, " n"]
    mpp: float | None = None
    label: str | None = None
    shape: tuple[int, int] | None = None
    """Rows and columns; None: as many as the cells need."""


def read_foreign(path: Path, name: str | None) -> Cells:
    """The cells in a file of another program's; its suffix says how it is read.

    Raises:
        DataError: unreadable, of another layout, no regular lattice, or a package is missing.
        ManifestError: it holds several slides and none of this name.
    """
    try:
        return FOREIGN[path.suffix](path, name)
    except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} of embeddings: {error}") from None


def _npy(path: Path, _: str | None) -> Cells:
    return _dense(path, np.load(path, allow_pickle=False))


def _hdf5(path: Path, _: str | None) -> Cells:
    with h5py.File(path, "r") as file:
        arrays = {name: file[name][()] for name in (*FEATURES, COORDS) if isinstance(file.get(name), h5py.Dataset)}
        there = sorted(file)
    return _of_arrays(path, arrays, there)


def _zarr(path: Path, _: str | None) -> Cells:
    try:
        import zarr
    except ImportError:
        raise DataError(f"{path}: reading .zarr needs the package zarr, which is not installed: {EXTRA}") from None
    opened: Any = zarr.open(str(path), mode="r")
    if isinstance(opened, zarr.Array):
        return _dense(path, np.asarray(opened[...]))
    arrays = {name: np.asarray(opened[name][...]) for name in (*FEATURES, COORDS) if name in opened}
    return _of_arrays(path, arrays, sorted(opened.keys()))


def _of_arrays(path: Path, arrays: Mapping[str, np.ndarray], there: list[str]) -> Cells:
    """Features with coords beside them, or a grid of features."""
    named = [name for name in FEATURES if name in arrays]
    if not named:
        raise DataError(f"{path}: no dataset {', '.join(FEATURES)}; it has {', '.join(there) or 'none'}")
    features = arrays[named[0]]
    if COORDS not in arrays:
        return _dense(path, features)
    features, coords = (
        array[0] if array.ndim == 3 and len(array) == 1 else array for array in (features, arrays[COORDS])
    )
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise DataError(
            f"{path}: {named[0]} of shape {features.shape} and {COORDS} of shape {coords.shape}; expected "
            "(n, features) and (n, 2), x and y of each"
        )
    return _at(path, path.stem, features, coords[:, 0].astype(np.int64), coords[:, 1].astype(np.int64))


def _dense(path: Path, grid: np.ndarray) -> Cells:
    """A whole grid (rows, columns, features); a cell of zeros is absent."""
    if grid.ndim != 3 or grid.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: an array of shape {grid.shape} and {grid.dtype}; expected numbers (rows, columns, features), or "
            f"(n, features) with {COORDS} (n, 2) beside it"
        )
    row, column = np.nonzero((grid != 0).any(axis=2))
    unknown = np.full(len(row), -1, np.int64)
    shape = (int(grid.shape[0]), int(grid.shape[1]))
    return Cells(path.stem, grid[row, column], row, column, unknown, unknown, shape=shape)


def _at(path: Path, name: str, embeddings: np.ndarray, x: np.ndarray, y: np.ndarray, **facts: Any) -> Cells:
    if not len(x):
        raise DataError(f"{path}: no embedding in it")
    row, column = find_lattice(x, y, str(path)).cells(x, y)
    return Cells(name, embeddings, row, column, x, y, **facts)


def _parquet(path: Path, name: str | None) -> Cells:
    table = pq.read_table(path)
    slide = path.stem
    if "slide" in table.column_names:
        slide, table = _of_slide(path, table, name)
    embeddings = _features(path, table)
    facts = {fact: _only(table, fact) for fact in ("mpp", "label")}
    places = {axis: _integers(path, table, axis) for axis in ("row", "column", "x", "y") if axis in table.column_names}
    unknown = np.full(len(table), -1, np.int64)
    x, y = places.get("x", unknown), places.get("y", unknown)
    if {"row", "column"} <= places.keys():
        return Cells(slide, embeddings, places["row"], places["column"], x, y, **facts)
    if {"x", "y"} <= places.keys():
        return _at(path, slide, embeddings, x, y, **facts)
    raise DataError(f"{path}: no columns x and y, or row and column; it has {', '.join(table.column_names[:8])}")


def _of_slide(path: Path, table: pa.Table, name: str | None) -> tuple[str, pa.Table]:
    slides = sorted({str(slide) for slide in table["slide"].to_pylist()})
    if name is None and len(slides) > 1:
        raise ManifestError(f"{path} has {len(slides)} slides; name one of them: {first_few(slides)}")
    chosen = name or slides[0]
    if chosen not in slides:
        raise ManifestError(f"{path} has no slide '{chosen}'; it has {first_few(slides)}")
    return chosen, table.filter(pa.array([str(slide) == chosen for slide in table["slide"].to_pylist()]))


def _features(path: Path, table: pa.Table) -> np.ndarray:
    """A column `embedding` of lists, or one column a feature, in their order."""
    if "embedding" in table.column_names:
        rows = table["embedding"].to_pylist()
        if len({len(row) if row is not None else -1 for row in rows}) > 1:
            raise DataError(f"{path}: embeddings of different dimensions in one file; expected one")
        return np.array(rows, np.float32)
    numeric = [
        field.name
        for field in table.schema
        if field.name not in _NOT_FEATURES and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]
    if not numeric:
        raise DataError(f"{path}: no column embedding, and no numeric column for a feature")
    return np.stack([table[column].to_numpy().astype(np.float32) for column in numeric], axis=1)


def _integers(path: Path, table: pa.Table, column: str) -> Int64[np.ndarray, " n"]:
    if table[column].null_count:
        raise DataError(f"{path}: {table[column].null_count} rows without {column}; expected one in every row")
    found = table[column].to_numpy().astype(np.int64)
    if column in ("row", "column") and len(found) and found.min() < 0:
        raise DataError(f"{path}: {column} {found.min()}; expected 0 or more")
    return found


def _only(table: pa.Table, column: str) -> Any:
    values = set(table[column].to_pylist()) if column in table.column_names else set()
    return values.pop() if len(values) == 1 else None


FOREIGN: dict[str, Callable[[Path, str | None], Cells]] = {
    ".npy": _npy,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".parquet": _parquet,
    ".zarr": _zarr,
}
