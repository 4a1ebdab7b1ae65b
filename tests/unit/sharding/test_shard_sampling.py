"""`sample` of the stage `shard`: even or stratified by class, within splits too."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sharding_helpers import Run

from hdtrain.errors import DataError
from hdtrain.formats.manifest import read_manifest

MakeImages = Callable[..., Path]
Pack = Callable[..., Run]


def test_equal_sampling_draws_the_same_number_a_class(pack: Pack, make_images: MakeImages) -> None:
    config = {"sources": [{"path": str(make_images("raw", {"a": 30, "b": 12, "c": 20}))}]}
    run = pack(**config, sample={"mode": "equal", "per_class": 10})
    assert run.manifest.info["class_counts"] == {"a": 10, "b": 10, "c": 10}
    assert run.manifest.info["num_unused"] == 32
    statuses = Counter((row["label"], row["status"]) for row in run.index.values())
    assert statuses[("a", "unused")] == 20
    again = pack("again", **config, sample={"mode": "equal", "per_class": 10})
    other = pack("other", **config, sample={"mode": "equal", "per_class": 10, "seed": 1})
    assert set(run.samples) == set(again.samples) != set(other.samples)


def test_stratified_sampling_keeps_the_shares(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {"a": 30, "b": 10})
    run = pack(sources=[{"path": str(raw)}], sample={"mode": "stratified", "fraction": 0.5})
    assert run.manifest.info["class_counts"] == {"a": 15, "b": 5}


def test_a_class_of_one_slide_may_be_missing_from_a_split_of_a_stratified_sample(
    pack: Pack, make_images: MakeImages
) -> None:
    raw = make_images("raw", {"a": 8, "b": 8})
    for name, slides in (("a", 8), ("b", 1)):
        for number, path in enumerate(sorted((raw / name).iterdir())):
            path.rename(path.with_name(f"s{number % slides}-{path.name}"))
    source = {"path": str(raw), "pattern": r"s(?P<slide>\d+)-"}
    splits = {"shares": {"train": 0.75, "validation": 0.25}, "by": "slide"}
    pack(sources=[source], splits=splits, sample={"mode": "stratified", "fraction": 0.5})
    published = [read_manifest(raw.parent / "out" / name) for name in splits["shares"]]
    assert [manifest.classes for manifest in published] == [["a", "b"]] * 2
    assert 0 in [count for manifest in published for count in manifest.info["class_counts"].values()]
    with pytest.raises(DataError, match=r"too few usable images: 'b' has 0 of 1"):
        pack("equal", sources=[source], splits=splits, sample={"mode": "equal", "per_class": 1})


def test_a_class_too_small_for_the_sample_is_named_with_its_count(pack: Pack, make_images: MakeImages) -> None:
    raw = make_images("raw", {"a": 30, "b": 4})
    with pytest.raises(DataError, match=r"too few usable images: 'b' has 4 of 10"):
        pack(sources=[{"path": str(raw)}], sample={"mode": "equal", "per_class": 10})
    with pytest.raises(DataError, match="draws by class"):
        pack(sources=[{"path": str(make_images("flat", 3))}], sample={"mode": "equal", "per_class": 1})
