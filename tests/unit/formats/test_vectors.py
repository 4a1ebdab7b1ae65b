"""Files of vectors and captions by key."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdtrain.errors import DataError
from hdtrain.formats.vectors import read_captions, read_vectors

KEYS = ["01", "b"]
VECTORS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def write(path, kind: str):
    if kind == "lists":
        pq.write_table(pa.table({"key": KEYS, "vector": VECTORS.tolist()}), path)
    elif kind == "columns":
        pq.write_table(pa.table({"key": KEYS, **{f"gene{i}": VECTORS[:, i] for i in range(3)}}), path)
    elif kind == "csv":
        path.write_text("key,gene0,gene1,gene2\n01,1,2,3\nb,4,5,6\n")
    elif kind == "keys":
        np.savez(path, keys=np.array(KEYS), vectors=VECTORS)
    elif kind == "arrays":
        np.savez(path, **dict(zip(KEYS, VECTORS, strict=True)))
    else:
        rows = [(key, vector) for key, vector in zip(KEYS, VECTORS, strict=True)]
        np.save(path, np.array(rows, [("key", "U8"), ("vector", "f4", (3,))]))
    return path


LAYOUTS = {
    "lists": "v.parquet",
    "columns": "v.parquet",
    "csv": "v.csv",
    "keys": "v.npz",
    "arrays": "v.npz",
    "structured": "v.npy",
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_vectors(tmp_path, kind):
    table = read_vectors(write(tmp_path / LAYOUTS[kind], kind))
    found, given = table.rows(["b", "nobody", "01"])
    assert found.tolist() == [[4, 5, 6], [0, 0, 0], [1, 2, 3]]
    assert given.tolist() == [True, False, True]
    assert table.names == (("gene0", "gene1", "gene2") if kind in ("columns", "csv") else None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("v.csv", "slide,gene0\na,1\n", "no column key; it has slide, gene0"),
        ("v.csv", "key,gene0\na,1\na,2\n", "more than one row of a"),
        ("v.csv", "key,gene0\na,1\nb,nan\n", "NaN, infinity or nothing in the vectors of b"),
        ("v.csv", "key,gene0\na,1\nb,\n", "NaN, infinity or nothing in the vectors of b"),
        ("v.csv", "key,name\na,x\n", "column name holds no numbers"),
        ("v.json", "{}", "not a file of vectors; expected .parquet, .csv"),
        ("v.parquet", "junk", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_vectors(tmp_path / name)


def test_an_array_without_keys_says_what_was_expected(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(DataError, match="has no keys; expected one with fields key and vector"):
        read_vectors(tmp_path / "v.npy")


def test_captions_come_from_csv_and_json(tmp_path):
    (tmp_path / "c.csv").write_text('key,text\na,"tumour, solid"\nb,stroma\n')
    (tmp_path / "c.json").write_text(json.dumps({"a": "tumour, solid", "b": "stroma"}))
    assert (
        read_captions(tmp_path / "c.csv") == read_captions(tmp_path / "c.json") == {"a": "tumour, solid", "b": "stroma"}
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.csv", "key,words\na,x\n", "no columns key and text; it has key, words"),
        ("c.csv", "key,text\na,x\na,y\n", "more than one row of a"),
        ("c.json", '{"a": ""}', "no text for a"),
        ("c.json", "[1]", "expected an object of key to text"),
        ("c.txt", "", "not a file of captions"),
    ],
)
def test_captions_that_cannot_be_used_are_one_message(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_captions(tmp_path / name)
