"""Shards that lie elsewhere: the same images bit for bit, by every scheme, and errors that say what is wrong."""

import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from hdtrain.config.load import validate
from hdtrain.config.training import ReaderConfig, ShardAccess
from hdtrain.data import remote
from hdtrain.data.exactly_once import ShardByShard, iterate_shard
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.data.pool import cache_directory
from hdtrain.data.remote import shard_url, stream
from hdtrain.errors import ConfigError, ShardError


@pytest.fixture
def config(tmp_path):
    """`config(url)`: a reader of remote shards with a cache of the test's own."""

    def make(url, **changes):
        settings = {"resolution": 32, "cache_bytes": 0, "retry_sec": 0.3, "cache_dir": str(tmp_path / "cache")}
        return ReaderConfig(url=url, **(settings | changes))

    return make


def without_shards(dataset, tmp_path, sidecars=False):
    """The data set with its manifest alone, as somebody copies it who leaves the shards where they are."""
    directory, manifest = dataset
    copied = tmp_path / "copied" / directory.name
    for shard in manifest.shards if sidecars else ():
        (copied / shard.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy((directory / shard.name).with_suffix(".json"), (copied / shard.name).with_suffix(".json"))
    return copied, manifest


def assert_same(one, other):
    assert one.keys == other.keys
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("sidecars", [False, True], ids=["manifest alone", "with sidecars"])
def test_images_from_a_web_server_are_those_of_the_disk_bit_for_bit(write, serve, config, tmp_path, sidecars):
    dataset = write("a", [5, 4, 3, 6])
    server = serve(tmp_path)
    far = without_shards(dataset, tmp_path, sidecars)
    settings = config(f"{server.url}/{{dataset}}/", block_shards=2)
    here, there = TrainingImages([dataset], settings, seed=0), TrainingImages([far], settings, seed=0)
    for start in range(0, 36, 6):  # two epochs
        assert_same(there.batch(range(start, start + 6)), here.batch(range(start, start + 6)))
    tars = [path for path in server.asked if path.endswith(".tar")]
    assert sorted(tars) == [f"/a/shards/{number}.tar" for number in range(4)], "each once, then from the cache"
    assert len(server.asked) == (4 if sidecars else 8)


def test_webdataset_reads_the_same_from_the_same_url(write, serve, config, tmp_path):
    directory, manifest = write("a", [5, 4])
    server = serve(directory)
    urls = [f"{server.url}/{shard.name}" for shard in manifest.shards]
    expected = {
        sample["__key__"]: np.asarray(sample["png"])
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb")
    }
    batch = TrainingImages([(tmp_path / "far", manifest)], config(server.url), seed=0).batch(range(9))
    assert sorted(batch.keys) == sorted(expected)
    for key, image in zip(batch.keys, batch.images, strict=True):
        np.testing.assert_array_equal(image, expected[key])


@pytest.fixture
def fake_aws(tmp_path, monkeypatch):
    """A program `aws` that knows `aws s3 cp … s3://BUCKET/KEY -`, its buckets folders of the test."""
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $5" = "s3 cp -" ] && cat "{tmp_path}/${{4#s3://}}"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.mark.parametrize(
    "url", ["pipe:cat {root}/{dataset}/{name}", "file:{root}/{dataset}/{name}", "file:{root}/a", "s3://a/"]
)
def test_every_scheme_gives_the_same_images(write, config, tmp_path, fake_aws, url):
    dataset = write("a", [5, 4])
    far = without_shards(dataset, tmp_path)
    settings = config(url.replace("{root}", str(tmp_path)))
    assert_same(
        TrainingImages([far], settings, seed=0).batch(range(9)),
        TrainingImages([dataset], config(None), seed=0).batch(range(9)),
    )


def test_shards_that_are_here_are_not_fetched(write, serve, config, tmp_path):
    dataset = write("a", [5, 4])
    server = serve(tmp_path)
    directory, manifest = far = without_shards(dataset, tmp_path, sidecars=True)
    shutil.copy(dataset[0] / manifest.shards[0].name, directory / manifest.shards[0].name)
    TrainingImages([far], config(f"{server.url}/{{dataset}}"), seed=0).batch(range(9))
    assert server.asked == ["/a/shards/1.tar"]


def test_latents_and_exactly_once_stages_read_from_afar_too(write, write_latents, tmp_path):
    access = ShardAccess(url=f"file:{tmp_path}/{{dataset}}", cache_dir=str(tmp_path / "cache"), retry_sec=0.3)
    latents, held = write_latents("l", [7, 5])
    batch = TrainingLatents([without_shards(latents, tmp_path)], seed=1, access=access).batch(range(12))
    assert sorted(batch.keys) == sorted(held)
    for key, record in zip(batch.keys, batch.moments, strict=True):
        np.testing.assert_array_equal(record, held[key][0])
    shards = ShardByShard([without_shards(write("a", [5, 4]), tmp_path)], access)
    found = [key for _, shard in shards.each([0, 1]) for b in iterate_shard(shard.reader, 3, 32) for key in b.keys]
    assert found == [f"a-{i}" for i in range(9)]


def test_the_next_blocks_shards_are_fetched_while_a_block_is_read(write, serve, config, tmp_path):
    dataset = write("a", [4] * 8)
    server = serve(tmp_path)
    far = without_shards(dataset, tmp_path, sidecars=True)
    source = TrainingImages([far], config(f"{server.url}/{{dataset}}", block_shards=2), seed=0)
    source.batch(range(4))
    wanted = {f"/a/shards/{shard}.tar" for shard in source.order.shards_from(0)}
    assert len(wanted) == 4
    deadline = time.monotonic() + 10
    while set(server.asked) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(server.asked) == wanted, "this block and the next, and nothing further"


def test_a_shard_that_is_nowhere_is_an_error_with_its_url_and_what_the_server_said(write, serve, config, tmp_path):
    far = without_shards(write("a", [5]), tmp_path, sidecars=True)
    server = serve(tmp_path / "cache")
    source = TrainingImages([far], config(server.url), seed=0)
    with pytest.raises(
        ShardError, match=rf"{server.url}/shards/0\.tar: .*exit code 22 \(refused, as by 404 or 403\); tried for 0\.3 s"
    ):
        source.batch(range(1))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pipe:head -c 900 {folder}/{name}; exit 3", "ended with exit code 3"),
        ("pipe:head -c 900 {folder}/{name}", "900 bytes with sha256 .*damaged on the way"),
        ("pipe:cat {folder}/{name} {folder}/{name}", "more than the .* bytes that the manifest says"),
        ("file:/nowhere/{name}", "No such file"),
    ],
)
def test_a_transfer_that_breaks_off_or_brings_something_else_is_not_taken(write, config, tmp_path, command, said):
    dataset = write("a", [5])
    far = without_shards(dataset, tmp_path, sidecars=True)
    with pytest.raises(ShardError, match=said):
        TrainingImages([far], config(command.replace("{folder}", str(dataset[0]))), seed=0).batch(range(1))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".room"]


def test_a_transfer_that_stands_still_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "STALL_SEC", 0.2)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"no data for 0\.2 s"):
        list(stream("pipe:echo begun; exec sleep 60"))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("https://host/corpus", "https://host/corpus/shards/a%20b.tar"),
        ("https://host/{dataset}/", "https://host/my%20set/shards/a%20b.tar"),
        ("https://host/{dataset}?file={name}&x=1", "https://host/my%20set?file=shards/a%20b.tar&x=1"),
        ("pipe:get {dataset} {name} | cat", "pipe:get 'my set' 'shards/a b.tar' | cat"),
    ],
)
def test_names_are_put_into_the_url_safely(template, url):
    assert shard_url(template, "my set", "shards/a b.tar") == url


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "host/corpus"}, "url: must begin with https://"),
        ({"url": "pipe:cat x"}, "url: a pipe: must hold {name}"),
        ({"weights": [1, 0]}, "weights.1: input should be greater than 0"),
    ],
)
def test_a_reader_that_cannot_work_is_refused_before_anything_runs(settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(ReaderConfig, settings, "test")


def test_the_cache_lies_where_the_node_says(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/local/job7")
    assert cache_directory("$SCRATCH/cache") == Path("/local/job7/cache")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ShardError, match=r"\$SCRATCH/cache: the variable is not set"):
        cache_directory("$SCRATCH/cache")
    assert cache_directory(None).is_absolute()
