"""Features on disk: computed once, for whatever asks again; damaged ones are made again."""

import io
import threading
import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_chain import draw

from hdtrain.config.training import TimmEncoder
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.distributed.world import World
from hdtrain.errors import DataError, ShardError
from hdtrain.evaluation import moments
from hdtrain.evaluation.moments import Moments, moments_of
from hdtrain.features.encoders import build_encoder
from hdtrain.features.store import FeatureStore, embed_dataset, shard_piece
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, shard_entry

SIZES = [5, 3, 4]
BATCH = 4
ALONE = World()


@pytest.fixture(scope="module")
def encoder():
    """A small network with random weights, which are the same at every call."""
    return build_encoder(TimmEncoder(kind="timm", name="test_resnet"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three shards of dots and stripes."""
    root = tmp_path_factory.mktemp("images")
    return root, publishable(root, SIZES)


def publishable(root, sizes, seed=0):
    """Shards of so many images below `root`, and a manifest of them."""
    rng, entries = np.random.default_rng(seed), []
    for number, samples in enumerate(sizes):
        path = root / "shards" / f"shard-{number:06d}.tar"
        with ShardWriter(path) as writer:
            for i in range(samples):
                stream = io.BytesIO()
                Image.fromarray(draw(i % 2, rng)).save(stream, "PNG")
                writer.add(f"k{seed}-{number}-{i}", "png", stream.getvalue(), {}, i % 2)
        entries.append(shard_entry(path, root))
    return Manifest(kind="images", stage="shard", fingerprint="f", commit="c", shards=entries, classes=["a", "b"])


def with_shards(manifest, count):
    return manifest.model_copy(update={"shards": manifest.shards[:count]})


@pytest.fixture
def shared():
    """`shared(folder)` is this process at work there; asked again, as another run."""
    with ExitStack() as stack:
        yield lambda folder, world=ALONE: stack.enter_context(SharedRun.open(RunDir(folder), world))


@pytest.fixture
def embed(shared):
    """`embed(dataset, encoder, folder)` gives store and features."""
    return partial(_embed, shared)


def _embed(shared, dataset, encoder, folder, world=ALONE, batch_size=BATCH):
    store = FeatureStore.open(shared(folder, world))
    return store, embed_dataset("features", dataset, encoder, store, batch_size, 32)


def files(folder, pattern="*.npy"):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "features").glob(pattern)}


def test_features_come_in_the_order_of_the_shards_with_keys_and_labels(dataset, encoder, tmp_path, embed):
    store, found = embed(dataset, encoder, tmp_path)
    blocks = list(found.blocks())
    assert [block.shape for block in blocks] == [(n, encoder.dim) for n in SIZES]
    assert len(found) == 12
    assert found.keys[4:7] == ["k0-0-4", "k0-1-0", "k0-1-1"]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    everything, wanted = np.concatenate(blocks), np.array([11, 0, 6, 6, 5, 4])
    np.testing.assert_array_equal(found.rows(wanted), everything[wanted])
    assert found.rows(np.array([], int)).shape == (0, encoder.dim)
    assert sorted(path.name for path in store.directory.iterdir()) == sorted(path.name for path in found.paths)


def test_an_image_has_the_same_features_whoever_stands_beside_it(dataset, encoder, tmp_path, embed):
    """Batches at the end of a shard are filled up, since kernels give other bits at other shapes."""
    rng, images = np.random.default_rng(0), []
    for count in SIZES:
        images += [draw(i % 2, rng) for i in range(count)]
    _, found = embed(dataset, encoder, tmp_path)
    features = np.concatenate(list(found.blocks()))
    for row, image in enumerate(images):
        alone = encoder.embed(np.stack([image] * BATCH)).numpy()
        np.testing.assert_array_equal(features[row], alone[BATCH - 1])


def test_a_second_run_computes_nothing(dataset, encoder, tmp_path, monkeypatch, embed):
    _, first = embed(dataset, encoder, tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(encoder, "embed", lambda images: pytest.fail("embedded again"))
    _, second = embed(dataset, encoder, tmp_path)
    assert files(tmp_path) == before
    np.testing.assert_array_equal(second.rows(np.arange(12)), first.rows(np.arange(12)))


def test_another_shard_costs_only_itself(dataset, encoder, tmp_path, embed):
    root, manifest = dataset
    embed((root, with_shards(manifest, 2)), encoder, tmp_path)
    before = files(tmp_path)
    embed(dataset, encoder, tmp_path)
    after = files(tmp_path)
    assert len(after) == 3
    assert before.items() < after.items()


def test_another_encoder_size_or_batch_has_files_of_its_own(dataset, encoder, tmp_path, embed, shared):
    embed(dataset, encoder, tmp_path)
    embed(dataset, build_encoder(TimmEncoder(kind="timm", name="test_vit")), tmp_path)
    embed(dataset, encoder, tmp_path, batch_size=2)
    store = FeatureStore.open(shared(tmp_path))
    embed_dataset("features", dataset, encoder, store, BATCH, 16)
    assert len(files(tmp_path)) == 4 * 3


@pytest.mark.parametrize("world", [World(0, 2), World(1, 2), World(2, 3)])
def test_a_rank_begins_with_its_share_and_goes_on_with_what_nobody_makes(dataset, encoder, tmp_path, world, embed):
    _, found = embed(dataset, encoder, tmp_path, world)
    made = sorted(files(tmp_path).items(), key=lambda item: item[1])
    order = [path.name for path in found.paths]
    mine = order[world.rank :: world.size]
    assert [name for name, _ in made] == mine + [name for name in order if name not in mine]


def test_a_shard_that_another_works_on_is_waited_for(dataset, encoder, tmp_path, embed, shared):
    _, found = embed(dataset, encoder, tmp_path)
    whole = found.paths[1].read_bytes()
    found.paths[1].unlink()
    other = shared(tmp_path)
    assert other.claims.take(found.paths[1].stem)

    def make() -> None:
        found.paths[1].write_bytes(whole)
        other.claims.release(found.paths[1].stem)

    threading.Timer(0.5, make).start()
    started = time.monotonic()
    _, again = embed(dataset, encoder, tmp_path)
    assert time.monotonic() - started > 0.4
    assert [path.exists() for path in again.paths] == [True] * 3


def test_a_file_that_was_cut_off_or_is_something_else_is_made_again(dataset, encoder, tmp_path, embed):
    _, found = embed(dataset, encoder, tmp_path)
    whole = [path.read_bytes() for path in found.paths]
    found.paths[0].write_bytes(whole[0][:-100])
    found.paths[1].write_bytes(b"no features at all")
    np.save(found.paths[2], np.zeros((SIZES[2] + 1, encoder.dim), np.float32))
    embed(dataset, encoder, tmp_path)
    assert [path.read_bytes() for path in found.paths] == whole


def test_a_shard_that_is_not_the_manifests_is_refused(dataset, encoder, tmp_path, embed, shared):
    root, manifest = dataset
    other = ShardEntry(**{**manifest.shards[0].model_dump(), "sha256": "0" * 64})
    store = FeatureStore.open(shared(tmp_path))
    with pytest.raises(ShardError, match=r"shard-000000\.tar: its sidecar is of another shard .*hdtrain verify"):
        store.embed("features", [shard_piece(root, other)], encoder, BATCH, 32)
    assert not files(tmp_path)


def test_an_encoder_that_gives_nan_is_refused_with_the_image(dataset, tmp_path, embed):
    sick = build_encoder(TimmEncoder(kind="timm", name="test_resnet"))
    with torch.no_grad():
        next(sick.net.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="gives NaN or infinity for k0-0-0"):
        embed(dataset, sick, tmp_path)
    assert not files(tmp_path)


def test_an_empty_shard_has_no_features(encoder, tmp_path, embed):
    _, found = embed((tmp_path, publishable(tmp_path, [0, 2])), encoder, tmp_path)
    assert [block.shape for block in found.blocks()] == [(0, encoder.dim), (2, encoder.dim)]
    assert found.rows(np.array([1, 0])).shape == (2, encoder.dim)
    before = files(tmp_path)
    embed((tmp_path, publishable(tmp_path, [0, 2])), encoder, tmp_path)
    assert files(tmp_path) == before


def test_sums_are_those_of_all_features_and_of_a_class(dataset, encoder, tmp_path, embed):
    store, found = embed(dataset, encoder, tmp_path)
    features = np.concatenate(list(found.blocks()))
    everything, stripes = moments_of(found, store), moments_of(found, store, label=1)
    for sums, rows in ((everything, features), (stripes, features[found.labels == 1])):
        assert sums.n == len(rows)
        np.testing.assert_allclose(sums.mean, rows.astype(float).mean(0), rtol=1e-12)
        np.testing.assert_allclose(sums.outer, rows.T.astype(float) @ rows.astype(float), rtol=1e-12)


def test_shards_that_come_later_cost_the_sums_of_their_own_group_alone(dataset, encoder, tmp_path, monkeypatch, embed):
    monkeypatch.setattr(moments, "SHARDS_PER_GROUP", 1)
    root, manifest = dataset
    summed, of = [], Moments.of
    monkeypatch.setattr(Moments, "of", lambda features: summed.append(len(features)) or of(features))
    store, found = embed((root, with_shards(manifest, 2)), encoder, tmp_path)
    moments_of(found, store)
    store, found = embed(dataset, encoder, tmp_path)
    grown = moments_of(found, store)
    assert summed == SIZES
    fresh, again = embed(dataset, encoder, tmp_path / "fresh")
    np.testing.assert_array_equal(grown.outer, moments_of(again, fresh).outer)
    for path in store.directory.glob("moments-*"):
        path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(grown.outer, moments_of(found, store).outer)
