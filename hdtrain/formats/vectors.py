"""Vectors by key that others computed, of texts or of numbers such as a genomic profile; captions by key. No torch."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32

from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json, sha256_bytes
from hdtrain.text import first_few

KEY, TEXT = "key", "text"
VECTOR = ("vector", "embedding")


@dataclass(frozen=True)
class VectorTable:
    """One vector a key."""

    keys: tuple[str, ...]
    vectors: Float32[np.ndarray, "n d"]
    names: tuple[str, ...] | None = None
    """Of the features, where the file has a column for each."""
    _places: dict[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self._places.update({key: place for place, key in enumerate(self.keys)})

    @property
    def dim(self) -> int:
        """Features of a vector."""
        return int(self.vectors.shape[1])

    @property
    def names_hash(self) -> str | None:
        """Of the features' names, in their order; None where they have none."""
        return None if self.names is None else sha256_bytes(canonical_json(list(self.names)))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def rows(self, keys: Sequence[str]) -> tuple[Float32[np.ndarray, "k d"], Bool[np.ndarray, " k"]]:
        """The vectors of these keys, zeros where there is none, and which there are."""
        places = np.array([self._places.get(key, -1) for key in keys], np.int64)
        given: np.ndarray = places >= 0
        found = np.zeros((len(keys), self.dim), np.float32)
        found[given] = self.vectors[places[given]]
        return found, given


def read_vectors(path: Path) -> VectorTable:
    """Vectors from a file, checked.

    Args:
        path: `.parquet` (a column `key`, and `vector` or `embedding` of lists or one numeric column a feature), `.csv`
            (`key`, and a column a feature), `.npz` (`keys` and `vectors`, or one array a key), `.npy` (a structured
            array with fields `key` and `vector`).

    Raises:
        DataError: missing, of another layout, NaN, a key twice.
    """
    if path.suffix not in _READERS:
        raise DataError(f"{path}: not a file of vectors; expected {', '.join(_READERS)}")
    try:
        table = _READERS[path.suffix](path)
    except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} of vectors: {error}") from None
    return _checked(table, path)


def read_captions(path: Path) -> dict[str, str]:
    """Texts by key.

    Args:
        path: `.csv` with columns `key` and `text`, or `.json`, an object of key to text.

    Raises:
        DataError: missing, of another layout, a key twice, an empty text.
    """
    if path.suffix not in (".csv", ".json"):
        raise DataError(f"{path}: not a file of captions; expected .csv with columns key and text, or .json")
    try:
        found = _captions(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as captions: {error}") from None
    empty = [key for key, text in found if not isinstance(text, str) or not text.strip()]
    if empty:
        raise DataError(f"{path}: no text for {_named(empty)}; give one, or leave the key out")
    _check_once([key for key, _ in found], path)
    return dict(found)


def _captions(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".json":
        tree = json.loads(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("expected an object of key to text")
        return list(tree.items())
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if not {KEY, TEXT} <= set(reader.fieldnames or []):
            raise ValueError(f"no columns key and text; it has {', '.join(reader.fieldnames or ['none'])}")
        return [(row[KEY], row[TEXT]) for row in reader]


def _of_table(table: pa.Table, path: Path) -> VectorTable:
    if KEY not in table.column_names:
        raise DataError(f"{path}: no column key; it has {', '.join(table.column_names[:8])}")
    keys = tuple(str(key) for key in table[KEY].to_pylist())
    lists = [name for name in VECTOR if name in table.column_names]
    if lists:
        rows = table[lists[0]].to_pylist()
        lengths = sorted({len(row or ()) for row in rows})
        if len(lengths) > 1:
            raise DataError(f"{path}: vectors of {lengths[0]} and of {lengths[-1]} features; expected one dimension")
        return VectorTable(keys, np.array(rows, np.float32).reshape(len(keys), -1))
    names = tuple(f.name for f in table.schema if f.name != KEY)
    other = [name for name in names if not _is_number(table.schema.field(name).type)]
    if other or not names:
        raise DataError(
            f"{path}: {f'column {other[0]} holds no numbers' if other else 'no column beside key'}; expected key, and "
            "vector, or numeric columns"
        )
    columns = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return VectorTable(keys, np.stack(columns, axis=1).astype(np.float32), names)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _npz(path: Path) -> VectorTable:
    with np.load(path, allow_pickle=False) as archive:
        arrays: dict[str, Any] = dict(archive.items())
    if {"keys", "vectors"} <= arrays.keys():
        return VectorTable(tuple(map(str, arrays["keys"].tolist())), np.asarray(arrays["vectors"], np.float32))
    return VectorTable(tuple(arrays), np.stack([array.reshape(-1) for array in arrays.values()]).astype(np.float32))


def _npy(path: Path) -> VectorTable:
    array = np.load(path, allow_pickle=False)
    if array.dtype.names is None or not {"key", "vector"} <= set(array.dtype.names):
        raise DataError(
            f"{path}: an array of {array.dtype} has no keys; expected one with fields key and vector, or a .npz with "
            "arrays keys and vectors"
        )
    return VectorTable(tuple(map(str, array["key"].tolist())), array["vector"].astype(np.float32))


_READERS: dict[str, Callable[[Path], VectorTable]] = {
    ".parquet": lambda path: _of_table(pq.read_table(path), path),
    ".csv": lambda path: _of_table(_csv(path), path),
    ".npz": _npz,
    ".npy": _npy,
}


def _csv(path: Path) -> pa.Table:
    """The key is text even if all keys are numbers."""
    return pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types={KEY: pa.string()}))


def _checked(table: VectorTable, path: Path) -> VectorTable:
    shape = table.vectors.shape
    if len(shape) != 2 or 0 in shape or shape[0] != len(table.keys):
        raise DataError(f"{path}: {len(table.keys)} keys and vectors of shape {shape}; expected one vector a key")
    _check_once(table.keys, path)
    bad = [key for key, fine in zip(table.keys, np.isfinite(table.vectors).all(axis=1), strict=True) if not fine]
    if bad:
        raise DataError(
            f"{path}: NaN, infinity or nothing in the vectors of {_named(bad)}; mend them or leave them out"
        )
    return table


def _check_once(keys: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{path}: more than one row of {_named(twice)}; give every key once")


def _named(keys: Sequence[str]) -> str:
    return first_few(list(dict.fromkeys(keys)))
