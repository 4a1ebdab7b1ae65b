"""Manifests: published whole or not at all, identified by content, refused with the command that helps."""

import json

import pytest

from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest, ParentEntry, ShardEntry, publish, read_manifest
from hdtrain.formats.provenance import record_prepared
from hdtrain.formats.run_dir import RunDir

SHARD = ShardEntry(name="shards/0.tar", samples=3, bytes=2048, sha256="ab")
IMAGES = Manifest(kind="images", stage="shard", fingerprint="f", commit="c", shards=[SHARD], classes=["a", "b"])


def test_a_manifest_reads_back_equal_and_counts_its_samples(tmp_path):
    publish(tmp_path, IMAGES)
    assert read_manifest(tmp_path, ("images",)) == IMAGES
    assert IMAGES.num_samples == 3


@pytest.mark.parametrize(
    "history",
    [
        {"commit": "other"},
        {"fingerprint": "other"},
        {"stage": "sample"},
        {"parents": {"x": ParentEntry(path="..", kind="images", identity="i")}},
    ],
)
def test_identity_ignores_how_the_content_was_made(history):
    assert IMAGES.model_copy(update=history).identity == IMAGES.identity


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "latents"},
        {"shards": [SHARD.model_copy(update={"sha256": "cd"})]},
        {"shards": []},
        {"classes": ["b", "a"]},
        {"split": "test"},
        {"info": {"scale": 0.18}},
        {"files": {"model/x": "ef"}},
    ],
)
def test_identity_changes_with_the_content(content):
    assert IMAGES.model_copy(update=content).identity != IMAGES.identity


def test_identity_is_the_same_in_every_process_and_version():
    assert IMAGES.identity == "2849fa95c5b389b376a0ada42db94e54830d1b5e9d7986ca6bd88836aa0ab756"


def test_another_schema_version_is_refused_by_number(tmp_path):
    publish(tmp_path, IMAGES)
    path = RunDir(tmp_path).manifest
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    with pytest.raises(ManifestError, match="schema version 2, this hdtrain reads version 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "schema version None"),
        ('{"schema_version": 1, "kind": "images"}', "damaged: stage"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, text, said):
    RunDir(tmp_path).manifest.write_text(text)
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path)


def test_another_kind_is_refused(tmp_path):
    publish(tmp_path, IMAGES)
    with pytest.raises(ManifestError, match="of kind 'images', expected latents or denoiser"):
        read_manifest(tmp_path, ("latents", "denoiser"))


def test_an_unpublished_parent_names_the_command_that_publishes_or_finishes_it(tmp_path):
    with pytest.raises(ManifestError, match=f"run `hdtrain encode CONFIG --out {tmp_path}` first"):
        read_manifest(tmp_path, ("latents",))
    record_prepared(RunDir(tmp_path), "train-vae", "f", "g")
    with pytest.raises(
        ManifestError, match=f"it was begun: run `hdtrain train-vae {tmp_path}/config.yaml --out {tmp_path}`"
    ):
        read_manifest(tmp_path, ("autoencoder",))
