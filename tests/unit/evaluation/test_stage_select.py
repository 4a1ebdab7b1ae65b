"""`select` on real patches: the choice, the copies, and independence of shards and ranks."""

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from stage_helpers import CLASSES, prepare, publish_classifier, publish_images, read_patches, run

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards

pytestmark = pytest.mark.needs_data
REAL, POOL = 6, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory, real_data):
    """Real images, a pool of others (some under a wrong label), and a classifier."""
    root = tmp_path_factory.mktemp("select")
    real = read_patches(real_data, "train", 0, REAL)
    pool = read_patches(real_data, "train", 50, POOL)
    pool = [(key, (label + (i % 4 == 0)) % 3, image, slide) for i, (key, label, image, slide) in enumerate(pool)]
    publish_images(root / "real", real, 7, "train")
    publish_images(root / "pool", pool, 9, "synthetic")
    publish_images(root / "pool-one-shard", pool[::-1], 100, "synthetic")
    publish_classifier(root / "phi", real, seeds=(0,))
    return root


def _config(root, real_data, **changes):
    weights = real_data / "weights" / "squeezenet_v1.1_notop_oihw.npz"
    config = {
        "real": [str(root / "real")],
        "candidates": [str(root / "pool")],
        "encoder": {"kind": "squeezenet", "weights": str(weights)},
        "ratios": [0.5, 1.0],
        "batch_size": 8,
        "resolution": 32,
    }
    return {**config, **changes}


@pytest.fixture(scope="module")
def selection(world, real_data):
    manifest = run("select", world / "selection", _config(world, real_data))
    return world / "selection", manifest


def _samples(directory):
    readers = open_shards(directory, read_manifest(directory, ("images",)))
    return {
        reader.sidecar.keys[i]: (reader.sidecar.labels[i], bytes(reader.image(i)), reader.meta(i))
        for reader in readers
        for i in range(reader.sidecar.samples)
    }


def test_selected_images_are_copies_in_data_sets_of_their_own(world, selection):
    directory, manifest = selection
    pool = _samples(world / "pool")
    assert manifest.info["datasets"] == ["selective-0.5", "selective-1", "random-0.5", "random-1"]
    for name in manifest.info["datasets"]:
        chosen = _samples(directory / name)
        assert all(chosen[key] == pool[key] for key in chosen)
        n = round(float(name.split("-")[1]) * REAL)
        labels = [label for label, _, _ in chosen.values()]
        assert [labels.count(k) for k in range(3)] == [n] * 3
        data = read_manifest(directory / name)
        assert (data.split, data.classes, data.num_samples) == ("synthetic", CLASSES, 3 * n)
    assert _samples(directory / "selective-0.5").keys() < _samples(directory / "selective-1").keys()


def test_the_index_has_every_candidate_and_agrees_with_the_choice(selection):
    directory, manifest = selection
    rows = pq.read_table(directory / "index.parquet").to_pylist()
    assert len(rows) == 3 * POOL
    assert {row["key"] for row in rows if row["selected"] == 0.5} == _samples(directory / "selective-0.5").keys()
    assert {row["key"] for row in rows if row["selected"]} == _samples(directory / "selective-1").keys()
    assert all(row["passes_gates"] == (row["class"] == row["nearest_class"]) for row in rows)
    assert all(row["confidence"] is None and row["nearest_real_distance"] > 0 for row in rows)
    for name in CLASSES:
        own = [row for row in rows if row["class"] == name]
        chosen = [row["target_distance"] for row in own if row["selected"] and row["passes_gates"]]
        others = [row["target_distance"] for row in own if not row["selected"] and row["passes_gates"]]
        assert not others or max(chosen) <= min(others)
        counts = manifest.info["per_class"][name]
        assert counts["passed"] == sum(row["passes_gates"] for row in own)
        assert (counts["real"], counts["candidates"]) == (REAL, len(own))
        assert counts["shortfall"]["1"] == max(0, REAL - counts["passed"])


def test_other_shards_and_another_batch_size_choose_the_same(world, real_data, selection):
    config = _config(world, real_data, candidates=[str(world / "pool-one-shard")], batch_size=5)
    run("select", world / "one-shard", config)
    for name in selection[1].info["datasets"]:
        assert _samples(world / "one-shard" / name) == _samples(selection[0] / name)


@pytest.mark.slow  # without real images: tests/distributed/test_features_on_ranks.py
def test_two_ranks_write_the_same_bytes(world, real_data, selection):
    directory = prepare("select", world / "two-ranks", _config(world, real_data))
    base = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29765"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "hdtrain.stages", "select", str(directory)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    assert read_manifest(directory).identity == selection[1].identity
    for name in selection[1].info["datasets"]:
        assert read_manifest(directory / name).identity == read_manifest(selection[0] / name).identity


def test_a_killed_run_goes_on_without_repeating_shards(world, real_data, selection):
    directory, manifest = selection
    (directory / "manifest.json").unlink()
    parts = sorted((directory / "parts").rglob("candidates*.npz"))
    features = sorted((directory / "features").glob("*.npy"))
    parts[-1].unlink()
    features[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in [*parts[:-1], *features[1:]]}
    again = run("select", directory, _config(world, real_data))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert parts[-1].exists()
    assert features[0].exists()
    assert again.identity == manifest.identity


def test_gate_a_asks_the_classifier(world, real_data):
    gates = {"confidence": 0.4, "nearest_centroid": False}
    config = _config(world, real_data, classifier=str(world / "phi"), gates=gates, ratios=[0.5])
    run("select", world / "gate-a", config)
    rows = pq.read_table(world / "gate-a" / "index.parquet").to_pylist()
    assert all(row["passes_gates"] == (row["confidence"] >= 0.4) for row in rows)
    assert len({row["passes_gates"] for row in rows}) == 2


def test_unlabelled_or_foreign_candidates_are_refused_by_name(world, real_data, tmp_path, capsys):
    foreign = [(key, label, image, slide) for key, label, image, slide in read_patches(real_data, "train", 0, 1)]
    publish_images(tmp_path / "foreign", foreign, 9, "synthetic", classes=["a", "b", "c"])
    run("select", tmp_path / "run", _config(world, real_data, candidates=[str(tmp_path / "foreign")]), code=2)
    message = capsys.readouterr().err
    assert "foreign" in message
    assert "a, b, c" in message
