"""Shards: published whole, same input same bytes, read at offsets and by webdataset alike, truncation noticed."""

import json

import numpy as np
import pytest
import webdataset

from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import RecordReader, write_record_shard
from hdtrain.formats.shards import (
    ShardReader,
    ShardWriter,
    Sidecar,
    is_complete,
    open_shards,
    shard_entry,
    sidecar_path,
)

SAMPLES = [("k0", b"\xff\xd8one", {"x": 1}, 0), ("k1", b"two" * 500, {"label": "ü"}, None), ("k2", b"", {}, 1)]


def write(path):
    with ShardWriter(path) as writer:
        for key, image, meta, label in SAMPLES:
            writer.add(key, "jpg", image, meta, label)
    return path


@pytest.fixture
def tar(tmp_path):
    return write(tmp_path / "shards" / "0.tar")


def test_samples_read_back_with_their_meta_and_labels(tar):
    reader = ShardReader(tar)
    for index, (key, image, meta, label) in enumerate(SAMPLES):
        assert (reader.sidecar.keys[index], reader.sidecar.labels[index]) == (key, label)
        assert (bytes(reader.image(index)), reader.meta(index)) == (image, meta)
    assert reader.sidecar.class_counts == {"0": 1, "1": 1}


def test_webdataset_reads_the_same_samples(tar):
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [(s["__key__"], s["jpg"], json.loads(s["json"])) for s in found] == [s[:3] for s in SAMPLES]


def test_the_same_input_gives_the_same_bytes_and_the_sidecar_knows_their_hash(tar, tmp_path):
    again = write(tmp_path / "again.tar")
    assert tar.read_bytes() == again.read_bytes()
    entry = shard_entry(tar, tmp_path)
    assert (entry.name, entry.samples, entry.bytes) == ("shards/0.tar", 3, tar.stat().st_size)
    assert entry.sha256 == sha256_file(tar)


def test_a_shard_that_could_not_be_finished_leaves_nothing(tmp_path):
    def fail_in_the_middle():
        with ShardWriter(tmp_path / "0.tar") as writer:
            writer.add("k", "jpg", b"x", {})
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert not list(tmp_path.iterdir())


def test_a_key_that_webdataset_would_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"with a dot.*a\.b"), ShardWriter(tmp_path / "0.tar") as writer:
        writer.add("a.b", "jpg", b"x", {})


@pytest.mark.parametrize("keep", [0, 700, -1])
def test_a_truncated_shard_is_refused_with_both_sizes(tar, keep):
    data = tar.read_bytes()
    tar.write_bytes(data[:keep])
    with pytest.raises(ShardError, match=f"{len(data[:keep])} bytes, its sidecar says {len(data)}: truncated"):
        ShardReader(tar).image(0)


def test_without_its_sidecar_or_tar_a_shard_is_not_complete(tar):
    assert is_complete(tar)
    sidecar = sidecar_path(tar)
    text = sidecar.read_text()
    sidecar.unlink()
    assert not is_complete(tar)
    with pytest.raises(ShardError, match="sidecar is missing"):
        Sidecar.read(sidecar)
    sidecar.write_text(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(ShardError, match="version 7, this hdtrain reads 1"):
        Sidecar.read(sidecar)
    sidecar.write_text(text)
    tar.unlink()
    assert not is_complete(tar)
    with pytest.raises(ShardError, match="shard is missing"):
        ShardReader(tar).image(0)


def test_a_manifests_shards_open_in_its_order(tmp_path):
    entries = [shard_entry(write(tmp_path / f"shards/{name}.tar"), tmp_path) for name in "ba"]
    manifest = Manifest(kind="images", stage="shard", fingerprint="", commit="", shards=entries)
    assert [reader.path.stem for reader in open_shards(tmp_path, manifest)] == ["b", "a"]


def test_metadata_that_is_not_where_it_should_be_is_told(tar):
    reader = ShardReader(tar)
    reader.sidecar.sizes[0] += 512
    with pytest.raises(ShardError, match=r"k0\.json: not where it should be; run `hdtrain verify`"):
        reader.meta(0)


def test_a_closed_reader_opens_again(tar):
    reader = ShardReader(tar)
    before = bytes(reader.image(1))
    reader.close()
    assert reader.image(1) == before
    assert reader.meta(0) == {"x": 1}


def test_a_sidecar_may_lie_elsewhere(tar, tmp_path):
    elsewhere = sidecar_path(tar).rename(tmp_path / "sidecar.json")
    assert ShardReader(tar, elsewhere).image(1) == SAMPLES[1][1]


@pytest.fixture
def records(tmp_path):
    return tmp_path / "records" / "0.tar", np.random.default_rng(0).standard_normal((7, 2, 3, 4)).astype(np.float16)


def test_record_shards_are_what_numpy_and_webdataset_read_too(records):
    path, array = records
    keys, labels = [f"k{i}" for i in range(7)], [0, 1, None, 1, 0, None, 1]
    write_record_shard(path, array, keys, labels, per_member=3, failed={"image cannot be decoded": 2})
    reader = RecordReader(path)
    assert [len(member) for member in reader.arrays()] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(reader.arrays()), array)
    assert (reader.sidecar.keys, reader.sidecar.labels, reader.sidecar.samples) == (keys, labels, 7)
    assert reader.sidecar.failed == {"image cannot be decoded": 2}
    members = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    np.testing.assert_array_equal(np.concatenate([m["records.npy"] for m in members]), array)
    assert [key for m in members for key in m["records.json"]["keys"]] == keys


def test_records_are_gathered_from_any_member_into_any_rows(records):
    path, array = records
    write_record_shard(path, array, [f"k{i}" for i in range(7)], [None] * 7, per_member=3)
    out = np.zeros((5, 2, 3, 4), np.float16)
    RecordReader(path).gather(np.array([6, 0, 3, 2]), out, np.array([0, 4, 1, 2]))
    np.testing.assert_array_equal(out[[0, 4, 1, 2]], array[[6, 0, 3, 2]])
    assert not out[3].any()
    with pytest.raises(ShardError, match="holds records"):
        RecordReader(path).gather(np.array([0]), np.zeros((1, 2, 3, 4), np.float32), np.array([0]))


def test_a_record_shard_may_be_empty(records):
    path, array = records
    write_record_shard(path, array[:0], [], [], per_member=3)
    assert RecordReader(path).arrays() == []
    assert RecordReader(path).sidecar.samples == 0
