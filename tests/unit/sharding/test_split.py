import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from sharding.split import assign_splits

PATIENTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=6, max_size=40)


def config(**changes: object) -> ShardConfig:
    return ShardConfig.model_validate({"sources": [{"path": "a"}], **changes})


def assign(settings: ShardConfig, patients: list[str | None], labels: list[int], sources: list[int] | None = None):  # type: ignore[no-untyped-def]
    names = sorted({name for name in patients if name})
    codes = np.array([names.index(name) if name else -1 for name in patients], np.int32)
    unknown = (np.full(len(patients), -1, np.int32), [])
    where = np.array(sources or [0] * len(patients), np.int32)
    return assign_splits(settings, where, np.array(labels, np.int32), {"patient": (codes, names), "slide": unknown})


@given(PATIENTS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_patient_is_ever_cut_and_every_sample_has_a_split(groups: list[tuple[int, int]], seed: int) -> None:
    patients = [f"P{i}" for i, (count, _) in enumerate(groups) for _ in range(count)]
    labels = [label for count, label in groups for _ in range(count)]
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    found = assign(config(splits={"shares": shares, "seed": seed}), patients, labels)
    assert set(found.tolist()) <= {0, 1, 2}
    for patient in set(patients):
        assert len({split for split, name in zip(found.tolist(), patients, strict=True) if name == patient}) == 1
    again = assign(config(splits={"shares": shares, "seed": seed}), patients, labels)
    np.testing.assert_array_equal(found, again)


def test_shares_and_classes_are_met_as_closely_as_whole_patients_allow() -> None:
    generator = np.random.default_rng(0)
    patients, labels = [], []
    for number in range(120):
        count, own = int(generator.integers(5, 40)), number % 3
        patients += [f"P{number}"] * count
        labels += [own if draw < 0.8 else 2 - own for draw in generator.random(count)]
    found = assign(config(splits={"shares": {"train": 0.7, "val": 0.1, "test": 0.2}}), patients, labels)
    for label in range(3):
        here = np.bincount(found[np.array(labels) == label], minlength=3) / labels.count(label)
        np.testing.assert_allclose(here, [0.7, 0.1, 0.2], atol=0.03)


def test_samples_are_cut_exactly_within_each_class() -> None:
    labels = [0] * 50 + [1] * 30
    found = assign(config(splits={"shares": {"train": 0.8, "test": 0.2}, "by": "sample"}), [None] * 80, labels)
    assert np.bincount(found[:50]).tolist() == [40, 10]
    assert np.bincount(found[50:]).tolist() == [24, 6]


def test_a_patient_in_two_sources_of_different_splits_is_a_leak_and_named() -> None:
    sources = [{"path": "a", "split": "train"}, {"path": "b", "split": "test"}]
    with pytest.raises(DataError, match=r"leak between splits: patient 'P7' is in 'train' and 'test'"):
        assign(config(sources=sources), ["P1", "P7", "P7", "P2"], [0] * 4, [0, 0, 1, 1])
    assert assign(config(sources=sources), ["P1", "P1", "P7", "P2"], [0] * 4, [0, 0, 1, 1]).tolist() == [0, 0, 1, 1]


def test_a_source_with_its_own_split_stays_there_beside_drawn_ones() -> None:
    sources = [{"path": "a"}, {"path": "b", "split": "external"}]
    both = config(sources=sources, splits={"shares": {"train": 0.5, "test": 0.5}})
    found = assign(both, ["P1", "P2", "P3"], [0, 0, 0], [0, 0, 1])
    assert both.split_names == ["train", "test", "external"]
    assert sorted(found[:2].tolist()) == [0, 1]
    assert found[2] == 2


def test_samples_without_a_patient_are_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"2 of 3 images have no known patient; give their source a 'pattern'"):
        assign(config(splits={"shares": {"train": 0.5, "test": 0.5}}), ["P1", None, None], [0, 0, 0])


@pytest.mark.parametrize("shares", [{"train": 1.0}, {"train": 0.5, "test": 0.4}, {"a/b": 0.5, "test": 0.5}])
def test_shares_that_cannot_be_meant_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 2|sum to 1|split names"):
        config(splits={"shares": shares})
