"""Exactly once: every sample of a shard in its order, broken ones counted or named, the same for any threads."""

import threading

import numpy as np
import pytest

from hdtrain.config.training import ShardAccess
from hdtrain.data.broken import BrokenSamples
from hdtrain.data.exactly_once import ShardByShard, decode_sample, iterate_shard
from hdtrain.errors import DataError
from hdtrain.evaluation.inputs import describe_shard
from hdtrain.features.parts import shard_units
from hdtrain.formats.shards import ShardReader, open_shards


def read(reader: ShardReader, threads: int = 2, broken: BrokenSamples | None = None, batch_size: int = 3):
    batches = list(iterate_shard(reader, batch_size, 32, threads=threads, broken=broken))
    keys = [key for batch in batches for key in batch.keys]
    images = np.concatenate([batch.images for batch in batches]) if batches else np.empty((0, 32, 32, 3), np.uint8)
    labels = np.concatenate([batch.labels for batch in batches]) if batches else np.empty(0, np.int64)
    return keys, images, labels


def test_one_shard_is_read_in_its_order_whatever_the_number_of_threads(write):
    reader = open_shards(*write("a", [7]))[0]
    keys, images, labels = read(reader, threads=1)
    assert keys == [f"a-{i}" for i in range(7)]
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, decode_sample(reader, i))
    again = read(reader, threads=4, batch_size=2)
    assert again[0] == keys
    np.testing.assert_array_equal(again[1], images)


def test_a_broken_image_is_left_out_with_its_key_and_label_and_counted(write, capsys):
    whole = read(open_shards(*write("a", [7]))[0])
    reader = open_shards(*write("a", [7], broken={2, 3, 4}))[0]
    broken = BrokenSamples(7, max_failed_share=0.5)
    keys, images, labels = read(reader, broken=broken)
    assert keys == ["a-0", "a-1", "a-5", "a-6"]
    assert labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(images, whole[1][[0, 1, 5, 6]])
    assert broken.by_reason() == broken.by_reason(reader.path) == {"image cannot be decoded": 3}
    assert capsys.readouterr().out.count("warning: skipped") == 3


def test_a_shard_of_broken_images_or_of_none_gives_no_batch(write):
    first, second = open_shards(*write("a", [2, 0], broken={0, 1}))
    assert read(first, broken=BrokenSamples(100, 0.5))[0] == []
    assert read(second)[0] == []


def test_more_broken_images_than_allowed_stop_with_shard_and_key(write):
    reader = open_shards(*write("a", [10], broken={2, 6}))[0]
    with pytest.raises(
        DataError, match=r"2 broken images of 10, more than max_failed_share 0\.1 .* the last was .*0\.tar: a-[26]:"
    ):
        read(reader, broken=BrokenSamples(10, max_failed_share=0.1))


@pytest.mark.parametrize("work", [read, describe_shard], ids=["features", "colours"])
def test_where_every_image_is_needed_a_broken_one_is_an_error_that_says_so(write, work):
    reader = open_shards(*write("b", [4], broken={2}))[0]
    with pytest.raises(DataError, match=r"0\.tar: b-2: image cannot be decoded.*needs every image.*hdtrain verify"):
        work(reader)


def test_a_unit_of_work_opens_its_shard_when_it_computes_and_keeps_nothing(write):
    directory, manifest = write("a", [2, 3])
    opened = []

    def count(reader):
        opened.append(reader)
        return {"keys": np.array(reader.sidecar.keys)}

    units = shard_units("x", (directory, manifest), count)
    assert [(unit.name, unit.samples) for unit in units] == [("x-0", 2), ("x-1", 3)]
    assert [unit.compute()["keys"].tolist() for unit in units] == [["a-0", "a-1"], ["a-2", "a-3", "a-4"]]
    assert len({id(reader) for reader in opened}) == 2


def test_shards_come_one_after_the_other_and_only_one_is_open(write):
    shards = ShardByShard([write("a", [2, 3]), write("b", [1])], ShardAccess())
    assert shards.samples == [2, 3, 1]
    found = []
    for number, shard in shards.each([2, 0, 1]):
        found.append((number, shard.keys))
        assert len(shards._pool._slots) == 1
    assert found == [(2, ["b-0"]), (0, ["a-0", "a-1"]), (1, ["a-2", "a-3", "a-4"])]


def test_leaving_in_the_middle_ends_the_threads(write):
    reader = open_shards(*write("a", [50]))[0]
    before = set(threading.enumerate())
    stream = iterate_shard(reader, 2, 32)
    next(stream)
    begun = set(threading.enumerate()) - before
    assert begun
    stream.close()
    for thread in begun:
        thread.join(5)
    assert not any(thread.is_alive() for thread in begun)
