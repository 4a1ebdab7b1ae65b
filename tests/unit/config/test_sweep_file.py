"""Sweeps: which runs a file means, and what is wrong with it."""

import pytest

from hdtrain.config.load import validate
from hdtrain.config.sweep_file import SweepFile, combinations
from hdtrain.errors import ConfigError


def sweep(keys: dict, **more: str) -> dict:
    return combinations(validate(SweepFile, {"keys": keys, **more}, "sweep"))


def problem(keys: dict, **more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(keys, **more)
    return caught.value.problems[0]


def test_a_grid_is_every_combination_and_a_name_tells_the_values():
    found = sweep({"optim.lr": [1e-4, 1e-3], "seed": [0, 1, 2]})
    assert len(found) == 6
    assert list(found)[:2] == ["000-lr=0.0001,seed=0", "001-lr=0.0001,seed=1"]
    assert found["005-lr=0.001,seed=2"] == {"optim.lr": 1e-3, "seed": 2}


def test_zip_takes_the_first_of_all_then_the_second_of_all():
    found = sweep({"optim.lr": [1e-4, 1e-3], "preset": ["small", "large"]}, combine="zip")
    assert list(found.values()) == [{"optim.lr": 1e-4, "preset": "small"}, {"optim.lr": 1e-3, "preset": "large"}]
    assert "combine: zip wants as many values for every key, got {'a': 2, 'b': 3}" in problem(
        {"a": [1, 2], "b": [1, 2, 3]}, combine="zip"
    )


@pytest.mark.parametrize(
    ("wanted", "values"),
    [
        ({"from": 1e-5, "to": 1e-3, "num": 3, "scale": "log"}, [1e-5, 1e-4, 1e-3]),
        ({"from": 0, "to": 1, "num": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"from": 2, "to": 32, "num": 5, "scale": "log"}, [2, 4, 8, 16, 32]),
    ],
)
def test_a_range_has_both_ends_and_whole_numbers_stay_whole(wanted, values):
    found = [one["a"] for one in sweep({"a": wanted}).values()]
    assert found == values
    assert all(isinstance(value, int) for value in found) == all(isinstance(value, int) for value in values)


def test_mistakes_are_told():
    assert "keys.a: expected at least one value" in problem({"a": []})
    assert "log wants numbers above 0, got 0 to 1" in problem({"a": {"from": 0, "to": 1, "num": 2, "scale": "log"}})
    assert problem({"a": {"from": 0, "to": 1, "nums": 2}}) == "keys.a.num: missing, and it has no default"
    assert "keys: 1,001 runs, and 1,000 is the most" in problem({"a": list(range(1001))})
    assert "keys: 1,024 runs" in problem({"a": list(range(32)), "b": list(range(32))})
    assert len(sweep({"a": list(range(1000))})) == 1000


def test_names_are_folders_whatever_the_values_are():
    names = list(sweep({"model.name": ["a/b c", "x" * 200], "sources": [[{"path": "/raw"}]]}))
    assert names[0] == "000-name=a_b_c,sources=_path_raw"
    assert all(len(name) <= 80 and "/" not in name for name in names)
