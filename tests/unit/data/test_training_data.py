"""Batches of images and latents at positions of the order: caching, broken images, copies, several data sets."""

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from tiny_chain import draw

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages, shared_classes
from hdtrain.data.latents import TrainingLatents
from hdtrain.errors import DataError, ManifestError, ShardError
from hdtrain.formats import read_files
from hdtrain.formats.manifest import FieldSpec, Manifest
from hdtrain.formats.shards import ShardWriter, open_shards, shard_entry, sidecar_path

NAMES = ["dots", "stripes"]


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


def read_by_webdataset(directory, manifest) -> dict[str, np.ndarray]:
    """Key to pixels, by the reference's own pipeline and PIL."""
    urls = [str(directory / shard.name) for shard in manifest.shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb")
    return {sample["__key__"]: np.asarray(sample.get("png", sample.get("jpg"))) for sample in samples}


def test_webdataset_finds_the_same_images_under_the_same_keys(write):
    directory, manifest = write("a", [5, 0, 4])
    expected = read_by_webdataset(directory, manifest)
    batch = TrainingImages([(directory, manifest)], reader(), seed=0).batch(range(9))
    assert sorted(batch.keys) == sorted(expected)
    for key, image in zip(batch.keys, batch.images, strict=True):
        np.testing.assert_array_equal(image, expected[key])


def test_real_jpegs_come_bit_for_bit_as_pil_decodes_them(tmp_path, real_data):
    tissue = sorted((real_data / "kather2016_crc8" / "test").rglob("*.png"))[::40]
    satellite = sorted((real_data / "eurosat_rgb").rglob("*.jpg"))[::300]
    assert len(tissue) > 5
    assert len(satellite) > 5
    encoded = {f"satellite-{i}": file.read_bytes() for i, file in enumerate(satellite)}
    for i, file in enumerate(tissue):
        buffer = io.BytesIO()
        Image.open(file).convert("RGB").resize((256, 256)).save(buffer, "JPEG", quality=95)
        encoded[f"tissue-{i}"] = buffer.getvalue()
    path = tmp_path / "shards" / "0.tar"
    with ShardWriter(path) as writer:
        for key, data in encoded.items():
            writer.add(key, "jpg", data, {}, 0)
    manifest = Manifest(
        kind="images", stage="shard", fingerprint="", commit="", shards=[shard_entry(path, tmp_path)], classes=["x"]
    )
    batch = TrainingImages([(tmp_path, manifest)], ReaderConfig(cache_bytes=0), seed=0).batch(range(len(encoded)))
    for key, image in zip(batch.keys, batch.images, strict=True):
        pixels = Image.open(io.BytesIO(encoded[key])).convert("RGB")
        expected = pixels if pixels.size == (256, 256) else pixels.resize((256, 256), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_images_of_all_ranks_are_those_of_one_rank_also_with_weights_and_from_the_middle(
    write, world_size, threads
):
    datasets = [write("a", [5, 4, 0]), write("b", [3], seed=1)]
    config = reader(weights=[0.75, 0.25], block_shards=1)
    whole = TrainingImages(datasets, config, seed=0).batch(range(84))
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=42), world_size)
    keys, images = [], []
    for rank in range(world_size):  # each a process of its own, that starts at the second step
        source = TrainingImages(datasets, config.model_copy(update={"threads": threads, "cache_bytes": 0}), seed=0)
        batch = source.batch(plan.positions(1, 0, rank))
        keys += batch.keys
        images += list(batch.images)
    assert keys == whole.keys[42:]
    np.testing.assert_array_equal(images, whole.images[42:])


def test_a_mixture_keeps_its_weights_and_says_how_much_it_took_of_each_data_set(write):
    datasets = [write("a", [5, 4]), write("b", [3], seed=1)]
    source = TrainingImages(datasets, reader(weights=[1, 3]), seed=0)
    keys = source.batch(range(40)).keys
    of_b = [key for key in keys if key.startswith("b-")]
    assert len(of_b) == 30
    assert all(sorted(of_b[start : start + 3]) == ["b-0", "b-1", "b-2"] for start in range(0, 30, 3))
    assert sorted([key for key in keys if key.startswith("a-")][:9]) == [f"a-{i}" for i in range(9)]
    assert source.seen(40) == {str(datasets[0][0]): 10, str(datasets[1][0]): 30}
    assert TrainingImages(datasets, reader(), seed=0).seen(36) == {str(datasets[0][0]): 27, str(datasets[1][0]): 9}


def test_copies_are_mixed_by_weight_too(write):
    datasets = [write("a", [2]), write("b", [3], seed=1)]
    batch = TrainingImages(datasets, reader(weights=[1, 1]), seed=0, copies=1).batch(range(24))
    for name, epoch in (("a", 4), ("b", 6)):
        rows = [i for i, key in enumerate(batch.keys) if key.startswith(name)][:epoch]
        assert sum(batch.is_copy[rows]) == epoch // 2
        assert sorted(batch.keys[i] for i in rows) == sorted([f"{name}-{i}" for i in range(epoch // 2)] * 2)


def test_many_shards_need_few_open_files_and_few_sidecars(write, monkeypatch):
    monkeypatch.setattr(read_files, "MAX_OPEN", 8)
    directory, manifest = write("a", [1] * 40)
    source = TrainingImages([(directory, manifest)], reader(block_shards=4, cache_bytes=0), seed=0)
    plain = open_shards(directory, manifest)  # as the stages hold them that copy images from all over a data set
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert sorted(source.batch(range(40)).keys) == sorted(f"a-{i}" for i in range(40))
    assert all(reader.image(0).startswith(b"\x89PNG") for reader in plain)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 8
    assert len(source.shards._slots) <= 4 + 2


def test_a_sidecar_of_another_shard_is_refused(write):
    directory, manifest = write("a", [3, 3])
    first, second = (sidecar_path(directory / shard.name) for shard in manifest.shards)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ShardError, match=r"1\.tar: its sidecar is of another shard .*hdtrain verify"):
        TrainingImages([(directory, manifest)], reader(), seed=0).batch(range(6))


def test_latents_come_with_their_own_keys_and_labels_from_any_member(write_latents):
    dataset, held = write_latents("a", [7, 5])
    batch = TrainingLatents([dataset], seed=1).batch(range(12))
    assert sorted(batch.keys) == sorted(held)
    assert batch.moments.dtype == np.float16
    for i, key in enumerate(batch.keys):
        record, label = held[key]
        np.testing.assert_array_equal(batch.moments[i], record)
        np.testing.assert_array_equal(batch.mean[i], record[0].astype(np.float32))
        np.testing.assert_array_equal(batch.std[i], record[1].astype(np.float32))
        assert batch.labels[i] == label


def test_latents_of_two_data_sets_are_mixed_by_weight(write_latents):
    (one, _), (two, _) = write_latents("a", [7, 5]), write_latents("b", [4], seed=1)
    source = TrainingLatents([one, two], seed=1, weights=[0.5, 0.5])
    keys = source.batch(range(24)).keys
    assert sorted(key for key in keys if key.startswith("a-")) == sorted(
        f"a-{shard}-{i}" for shard, size in enumerate([7, 5]) for i in range(size)
    )
    assert sorted(key for key in keys if key.startswith("b-")) == sorted([f"b-0-{i}" for i in range(4)] * 3)
    assert source.seen(24) == {str(one[0]): 12, str(two[0]): 12}


def test_latents_of_different_shapes_are_refused(write_latents):
    (directory, manifest), _ = write_latents("a", [3])
    other = manifest.model_copy(update={"fields": {"moments": FieldSpec(dtype="float16", shape=[2, 3, 8, 8])}})
    with pytest.raises(ManifestError, match="different shapes"):
        TrainingLatents([(directory, manifest), (directory, other)], seed=0)
    with pytest.raises(ShardError, match="holds records"):
        TrainingLatents([(directory, other)], seed=0).batch(range(1))
