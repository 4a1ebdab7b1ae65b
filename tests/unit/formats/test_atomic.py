"""Nothing is seen under its name before it is complete."""

import json
import math

import pytest

from hdtrain.formats.atomic import atomic_file, canonical_json, sha256_bytes, sha256_file, write_bytes, write_json


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "a" / "x.bin"
    write_bytes(path, b"old")

    def fail_in_the_middle():
        with atomic_file(path) as stream:
            stream.write(b"new")
            assert path.read_bytes() == b"old"
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_canonical_json_has_one_form_and_refuses_nan():
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"é","b":1}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})


def test_hashes_of_a_file_and_of_its_bytes_agree(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2]}
    assert sha256_file(tmp_path / "x.json") == sha256_bytes((tmp_path / "x.json").read_bytes())
