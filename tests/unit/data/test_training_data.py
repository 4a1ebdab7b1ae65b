"""Batches of images and latents at positions of the order: caching, broken images, copies, several data sets."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_chain import draw

from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages, iterate_shard, shared_classes
from hdtrain.data.latents import TrainingLatents
from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardReader, ShardWriter, shard_entry

NAMES = ["dots", "stripes"]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    """`write("name", [5, 4], broken={7})`: a data set of shards of these sizes."""

    def make(name, sizes, broken=(), classes=NAMES, seed=0):
        rng, number, entries = np.random.default_rng(seed), 0, []
        for shard, size in enumerate(sizes):
            path = tmp_path / name / "shards" / f"{shard}.tar"
            with ShardWriter(path) as writer:
                for _ in range(size):
                    label = number % 2
                    data = b"\x89PNG no image" if number in broken else png(draw(label, rng))
                    writer.add(f"{name}-{number}", "png", data, {}, label if classes else None)
                    number += 1
            entries.append(shard_entry(path, tmp_path / name))
        manifest = Manifest(kind="images", stage="shard", fingerprint="f", commit="c", shards=entries, classes=classes)
        return tmp_path / name, manifest

    return make


def reader(**changes):
    return ReaderConfig(resolution=32, threads=2, max_failed_share=0.2, **changes)


def test_a_batch_holds_the_images_keys_and_labels_of_its_positions(write):
    datasets = [write("a", [5, 4]), write("b", [3], seed=1)]
    source = TrainingImages(datasets, reader(), seed=0)
    batch = source.batch(range(12))
    assert sorted(batch.keys) == sorted([f"a-{i}" for i in range(9)] + [f"b-{i}" for i in range(3)])
    assert batch.images.shape == (12, 32, 32, 3)
    for key, label, image in zip(batch.keys, batch.labels, batch.images, strict=True):
        name, number = key.split("-")
        rng = np.random.default_rng(0 if name == "a" else 1)
        expected = [draw(i % 2, rng) for i in range(int(number) + 1)][-1]
        assert label == int(number) % 2
        np.testing.assert_array_equal(image, expected)


def test_the_cache_changes_nothing_but_the_time(write):
    dataset = [write("a", [7, 6], broken={3})]
    cached, plain = (TrainingImages(dataset, reader(cache_bytes=size), seed=2) for size in (10**9, 0))
    assert cached._cache is not None
    assert plain._cache is None
    for start in range(0, 39, 5):  # three epochs
        one, two = cached.batch(range(start, start + 5)), plain.batch(range(start, start + 5))
        assert one.keys == two.keys
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_a_broken_image_is_named_counted_once_and_replaced_by_its_neighbour(write, capsys):
    source = TrainingImages([write("a", [7, 6], broken={3})], reader(), seed=0)
    whole = TrainingImages([write("b", [7, 6])], reader(), seed=0)
    for _ in range(2):
        keys = source.batch(range(13)).keys
    expected = [key.replace("b-", "a-") for key in whole.batch(range(14)).keys]
    place = expected.index("a-3")
    assert keys == [*expected[:place], expected[place + 1], *expected[place + 1 : 13]]
    assert len(source.broken) == 1
    assert capsys.readouterr().out.count("a-3: image cannot be decoded") == 1


@pytest.mark.parametrize(("share", "broken"), [(0.2, {1, 4, 6}), (1.0, range(13))])
def test_too_many_broken_images_stop_the_run_with_the_count(write, share, broken):
    config = reader().model_copy(update={"max_failed_share": share})
    source = TrainingImages([write("a", [7, 6], broken=broken)], config, seed=0)
    with pytest.raises(
        DataError, match=rf"{len(broken)} broken images of 13.*max_failed_share {share:g}.*hdtrain verify"
    ):
        source.batch(range(13))


def test_copies_come_once_an_epoch_beside_the_images_and_are_marked(write):
    source = TrainingImages([write("a", [5, 4])], reader(), seed=0, copies=2)
    batch = source.batch(range(27))
    assert sorted(batch.keys) == sorted([f"a-{i}" for i in range(9)] * 3)
    assert batch.is_copy.sum() == 18
    assert sorted(np.array(batch.keys)[~batch.is_copy]) == sorted(f"a-{i}" for i in range(9))


def test_unlabelled_images_have_label_minus_one_and_may_stand_beside_labelled_ones(write):
    datasets = [write("a", [2], classes=None), write("b", [2])]
    assert set(TrainingImages(datasets, reader(), seed=0).batch(range(4)).labels) == {-1, 0, 1}
    assert shared_classes(datasets) == NAMES
    assert shared_classes(datasets[:1]) is None
    with pytest.raises(ManifestError, match=r"classes differ: .*b has dots, stripes; .*c has stripes, dots"):
        shared_classes([*datasets, write("c", [2], classes=NAMES[::-1])])


def test_one_shard_is_read_in_its_order_and_a_broken_image_is_named(write):
    directory, manifest = write("a", [7])
    batches = list(iterate_shard(ShardReader(directory / manifest.shards[0].name), 3, 32))
    assert [len(batch.keys) for batch in batches] == [3, 3, 1]
    assert [key for batch in batches for key in batch.keys] == [f"a-{i}" for i in range(7)]
    directory, manifest = write("b", [4], broken={2})
    with pytest.raises(DataError, match="b-2: image cannot be decoded"):
        list(iterate_shard(ShardReader(directory / manifest.shards[0].name), 3, 32))


def test_latents_come_with_their_own_keys_and_labels_from_any_member(tmp_path):
    rng = np.random.default_rng(0)
    sizes, entries, expected = [7, 5], [], {}
    for shard, size in enumerate(sizes):
        records = rng.normal(size=(size, 2, 3, 4, 4)).astype(np.float16)
        keys = [f"{shard}-{i}" for i in range(size)]
        labels = [i % 2 for i in range(size)]
        path = tmp_path / "shards" / f"{shard}.tar"
        write_record_shard(path, records, keys, labels, per_member=3)
        entries.append(shard_entry(path, tmp_path))
        expected |= dict(zip(keys, zip(records, labels, strict=True), strict=True))
    manifest = Manifest(kind="latents", stage="encode", fingerprint="f", commit="c", shards=entries)
    batch = TrainingLatents(tmp_path, manifest, seed=1).batch(range(12))
    assert sorted(batch.keys) == sorted(expected)
    for i, key in enumerate(batch.keys):
        record, label = expected[key]
        np.testing.assert_array_equal(batch.mean[i], record[0].astype(np.float32))
        np.testing.assert_array_equal(batch.std[i], record[1].astype(np.float32))
        assert batch.labels[i] == label
