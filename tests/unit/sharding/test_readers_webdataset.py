import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError
from hdtrain.formats.shards import ShardWriter
from hdtrain.formats.tar import TarWriter
from sharding.inputs import ByteRange
from sharding.readers.webdataset import WebDatasetReader

Members = list[tuple[str, bytes]]


def tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for name, data in members:
            writer.add(name, data)
        writer.close()
    return path


def sample(key: str, **fields: Any) -> Members:
    return [(f"{key}.png", f"image {key}".encode()), (f"{key}.json", json.dumps(fields).encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        members = [
            m for index in range(7) for m in sample(f"s{number}-{index}", slide=f"S{index % 2}", x=index, y=None)
        ]
        tar(tmp_path / "shards" / f"shard-{number:06d}.tar", members)
    return tmp_path / "shards"


def test_shards_are_recognised_and_read_tar_by_tar(shards: Path) -> None:
    assert isinstance(opened(shards), WebDatasetReader)
    inputs = listed(shards, mpp=0.5)
    assert [item.stem for item in inputs] == [f"s{number}-{index}" for number in range(3) for index in range(7)]
    assert [outcome(item) for item in inputs] == [f"image {item.stem}".encode() for item in inputs]
    last = inputs[-1]
    assert last.path == "shard-000002.tar/s2-6.png"
    assert (last.slide, last.x, last.y, last.mpp, last.label, last.patient) == ("S0", 6, None, 0.5, None, None)
    assert isinstance(last.content, ByteRange)


@pytest.mark.parametrize("unit_inputs", [1, 3, 7, 100])
def test_a_large_tar_is_cut_into_units_that_give_the_same_order(shards: Path, unit_inputs: int) -> None:
    expected = described(listed(shards))
    reader = opened(shards)
    assert isinstance(reader, WebDatasetReader)
    assert [unit.num_inputs for unit in reader.units()] == [7] * 3
    reader.large_bytes, reader.unit_inputs = 0, unit_inputs
    units = list(reader.units())
    assert len(units) == 3 * -(-7 // unit_inputs)
    assert [unit.num_inputs for unit in units] == [len(list(reader.read(unit))) for unit in units]
    assert described([item for unit in units for item in opened(shards).read(unit)]) == expected


def test_hdtrains_own_shards_go_round_with_their_fields_and_labels(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, "PNG")
    meta = {"slide": "S1", "patient": "P1", "x": 4, "y": 5, "mpp": 0.5, "label": "TUM", "class_index": 1, "key": "k"}
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        writer.add("k", "png", stream.getvalue(), meta, 1)
    (item,) = listed(tmp_path, mpp=1.0)
    assert (item.slide, item.patient, item.x, item.y, item.mpp, item.label) == ("S1", "P1", 4, 5, 0.5, None)
    assert (item.stem, outcome(item)) == ("k", stream.getvalue())
    assert listed(tmp_path, columns={"label": "label"})[0].label == "TUM"
    assert listed(tmp_path, columns={"label": "class_index"})[0].label == "1"


def test_what_webdataset_writes_is_read_as_webdataset_reads_it(tmp_path: Path) -> None:
    """Its writer leaves PAX headers; keys with folders, extensions of two parts and capitals are grouped alike."""
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(5):
            key = f"deep/{'long' * 30}/v1.5/n{number}"
            fields = {"jpg": b"j%d" % number, "seg.PNG": b"mask", "cls": number, "meta.json": {"slide": "S"}}
            writer.write({"__key__": key, **fields})
    expected = [
        (found["__key__"], found["jpg"], found["cls"]) for found in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    inputs = listed(path, columns={"image": "jpg", "label": "cls"})
    assert [(item.stem, outcome(item), str(item.label).encode()) for item in inputs] == expected
    assert {outcome(item) for item in listed(path)} == {"refused: several images in the sample: jpg, seg.png"}
    assert {outcome(item) for item in listed(path, columns={"image": "seg.png"})} == {b"mask"}


def test_columns_are_extensions_or_keys_of_json(tmp_path: Path) -> None:
    members = [
        *sample("a", case={"id": 7, "site": "lung"}, x=1, label="no"),
        ("a.cls", b"3\n"),
        ("a.txt", "größer".encode()),
    ]
    path = tar(tmp_path / "a.tar", members)
    (item,) = listed(path, columns={"label": "cls", "slide": "txt", "patient": "case.id", "x": "absent"})
    assert (item.label, item.slide, item.patient, item.x) == ("3", "größer", "7", None)
    assert listed(path, columns={"label": "case.site"})[0].label == "lung"
    assert outcome(listed(path, columns={"label": "grade"})[0]) == "refused: no label"
    with pytest.raises(DataError, match=r"'case' holds .*, expected a text or a number as the label"):
        listed(path, columns={"label": "case"})


def test_fields_that_nobody_named_are_passed_over_when_they_mean_something_else(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("a", x="left", y=[1], mpp="?", slide={"id": 1}, patient=5))
    (item,) = listed(path)
    assert (item.x, item.y, item.mpp, item.slide, item.patient) == (None, None, None, None, "5")
    with pytest.raises(DataError, match="'x' holds 'left', expected a whole number as the x"):
        listed(path, columns={"x": "x"})


def test_samples_without_an_image_are_refused_by_name(tmp_path: Path) -> None:
    members = [
        *sample("a"),
        ("b.json", b"{}"),
        ("c.png", b"1"),
        ("c.json", b"{"),
        ("d.png", b"1"),
        ("d.PNG", b"2"),
        ("e.webp", b"foreign"),
        ("README", b"no extension"),
        (".hidden.png", b""),
        ("__index__.json", b""),
        *sample("a"),
    ]
    inputs = listed(tar(tmp_path / "a.tar", members))
    assert [(item.path, outcome(item)) for item in inputs] == [
        ("a.tar/a.png", b"image a"),
        ("a.tar/b", "refused: no image in the sample"),
        ("a.tar/c.png", "refused: its json cannot be read"),
        ("a.tar/d", "refused: two members of one name in the sample: png"),
        ("a.tar/e.webp", b"foreign"),
        ("a.tar/a.png", b"image a"),
    ]


def test_a_tar_of_images_alone_is_an_archive_and_a_folder_of_them_is_not_guessed(tmp_path: Path) -> None:
    members = [("a/1.png", b"1"), ("a/2.png", b"2"), ("b/1.png", b"3")]
    path = tar(tmp_path / "tars" / "a.tar", members)
    assert [(item.path, item.label) for item in listed(path)] == [("a/1.png", "a"), ("a/2.png", "a"), ("b/1.png", "b")]
    with pytest.raises(DataError, match="archives of images; give each as a source of its own, or say layout: webdata"):
        listed(tmp_path / "tars")
    assert [item.stem for item in listed(tmp_path / "tars", layout="webdataset")] == ["a/1", "a/2", "b/1"]


def test_what_lies_before_the_damage_is_read_and_the_damage_is_named(shards: Path) -> None:
    path = shards / "shard-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: 5 * 2048 + 100])
    reader = opened(shards)
    units = list(reader.units())
    seen: list[str] = []
    with pytest.raises(DataError, match=r"shard-000001\.tar: truncated: it ends at byte 10340"):
        seen.extend(item.stem for item in reader.read(units[1]))
    assert seen == [f"s1-{index}" for index in range(4)]
    path.write_bytes(data[:3000] + bytes(700) + data[3700:])
    with pytest.raises(DataError, match=r"shard-000001\.tar: (damaged|more data behind)"):
        listed(shards)


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "b.png"
        made.addfile(info)
    assert outcome(listed(tmp_path / "a.tar", layout="webdataset")[0]) == "refused: a link or a sparse member"


def test_a_unit_knows_when_its_tar_changes(shards: Path) -> None:
    reader = opened(shards)
    first, *_ = reader.units()
    before = reader.state(first)
    tar(shards / first.path, sample("other"))
    assert reader.state(first) != before
