"""The stage `encode`: what it caches is what plain diffusers computes, also around images that are broken."""

import io
import os
import signal
import time
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tiny_chain import prepare, run_here, signals_kept

from hdtrain.distributed.stop import STOP
from hdtrain.distributed.world import World
from hdtrain.formats.claims import Claims
from hdtrain.formats.manifest import publish, read_manifest
from hdtrain.formats.records import RecordReader
from hdtrain.formats.shards import Sidecar, open_shards, sidecar_path
from hdtrain.stages import encode
from hdtrain.stages.base import StageContext


def cached(run) -> dict[str, np.ndarray]:
    """Key to (2, c, h, w)."""
    found = {}
    for entry in read_manifest(run).shards:
        reader = RecordReader(run / entry.name)
        found |= dict(zip(reader.sidecar.keys, (record for array in reader.arrays() for record in array), strict=True))
    return found


@torch.no_grad()
def plainly(chain, name: str, flip: bool) -> dict[str, np.ndarray]:
    vae = AutoencoderKL.from_pretrained(chain["vae"] / "model")
    found = {}
    for shard in open_shards(chain[name], read_manifest(chain[name])):
        for i, key in enumerate(shard.sidecar.keys):
            pixels = np.asarray(Image.open(io.BytesIO(shard.image(i))).convert("RGB"), np.float32)
            x = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
            posterior = vae.encode(x.flip(3) if flip else x).latent_dist
            found[key + ("-flip" if flip else "")] = torch.cat([posterior.mean, posterior.std]).numpy()
    return found


def test_every_image_is_encoded_once_as_diffusers_does(chain):
    ours, plain = cached(chain["latents"]), plainly(chain, "unlabelled", flip=False)
    assert ours.keys() == plain.keys()
    assert len(ours) == 20
    for key, moments in plain.items():
        np.testing.assert_allclose(ours[key].astype(np.float32), moments, rtol=1e-3, atol=1e-5)
    manifest = read_manifest(chain["latents"])
    assert manifest.fields["moments"].shape == [2, 3, 8, 8]
    assert manifest.info["encoder_id"] == read_manifest(chain["vae"]).info["encoder_id"]


def test_flips_are_encoded_from_the_flipped_image_and_carry_its_label(chain):
    run = chain["labelled-latents"]
    ours = cached(run)
    plain = plainly(chain, "labelled", flip=False) | plainly(chain, "labelled", flip=True)
    assert ours.keys() == plain.keys()
    for key, moments in plain.items():
        np.testing.assert_allclose(ours[key].astype(np.float32), moments, rtol=1e-3, atol=1e-5)
    labels = {
        key: label
        for entry in read_manifest(run).shards
        for key, label in zip(
            *(getattr(RecordReader(run / entry.name).sidecar, n) for n in ("keys", "labels")), strict=True
        )
    }
    assert all(labels[key] == labels[key.removesuffix("-flip")] for key in labels)
    assert sorted(labels.values()) == [0] * 20 + [1] * 20


def config_of(chain, write, name, broken, share):
    """A config that encodes 13 small images, some of them broken."""
    directory, manifest = write(name, [6, 5, 2], broken=broken)
    publish(directory, manifest)
    return {"images": [str(directory)], "vae": str(chain["vae"]), "batch_size": 4, "max_failed_share": share}


def test_a_broken_image_is_left_out_and_recorded_in_part_and_manifest(chain, write, tmp_path, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert run_here("encode", run, config_of(chain, write, "some", {1, 11, 12}, 0.3)) == 0
    said = capsys.readouterr().out
    assert run_here("encode", whole, config_of(chain, write, "none", (), 0)) == 0
    expected = {key.replace("none", "some"): moments for key, moments in cached(whole).items()}
    found = cached_keys(run)
    assert found == [f"some-{i}" for i in range(13) if i not in (1, 11, 12)]
    for key, moments in cached(run).items():
        np.testing.assert_allclose(moments.astype(np.float32), expected[key].astype(np.float32), rtol=2e-3, atol=1e-5)
    failed = [Sidecar.read(sidecar_path(run / entry.name)).failed for entry in read_manifest(run).shards]
    assert failed == [{"image cannot be decoded": 1}, {}, {"image cannot be decoded": 2}]
    assert [entry.samples for entry in read_manifest(run).shards] == [5, 5, 0]
    assert read_manifest(run).info["failed"] == {"image cannot be decoded": 3}
    assert "0.tar: some-1: image cannot be decoded" in said
    assert "encoded 10 latents in 3 shards; skipped 3 images: image cannot be decoded" in said


def cached_keys(run) -> list[str]:
    return [key for entry in read_manifest(run).shards for key in RecordReader(run / entry.name).sidecar.keys]


def test_too_many_broken_images_stop_the_stage_with_shard_and_key(chain, write, tmp_path, capsys):
    assert run_here("encode", tmp_path / "run", config_of(chain, write, "some", {1, 7}, 0.1)) == 2
    said = capsys.readouterr().err
    assert "2 broken images of 13, more than max_failed_share 0.1 allows; the last was" in said
    assert "1.tar: some-7: image cannot be decoded" in said
    assert not (tmp_path / "run" / "manifest.json").exists()


def told_to_go_once_there(path) -> None:
    while not path.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_several_ranks_and_a_restart_count_all_broken_images_together(chain, write, tmp_path, capsys):
    config = config_of(chain, write, "some", {1, 7}, 0.1)
    prepare("encode", tmp_path / "run", config)
    resolved, context = StageContext.open("encode", tmp_path / "run")
    with Claims(context.run.claims) as others:
        assert others.take("latents-000000.tar")
        assert others.take("latents-000002.tar")
        # One broken image each: none sees too many. Rank 1 waits for what the others have in hand, till told to go.
        gone = Thread(target=told_to_go_once_there, args=(context.run.shards / "latents-000001.json",))
        gone.start()
        with pytest.raises(SystemExit, match="3"), signals_kept():
            encode.run(resolved, replace(context, world=World(rank=1, size=2)))
        gone.join()
        STOP.number = 0
    assert run_here("encode", tmp_path / "run", config) == 2
    assert "2 broken images of 13" in capsys.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_any_number_of_ranks_encodes_the_same_around_broken_images(chain, write, tmp_path):
    config = config_of(chain, write, "some", {1, 7}, 0.2)
    assert run_here("encode", tmp_path / "one", config) == 0
    prepare("encode", tmp_path / "three", config)
    resolved, context = StageContext.open("encode", tmp_path / "three")
    for rank in (2, 1, 0):  # the main one last: it waits for the others
        encode.run(resolved, replace(context, world=World(rank=rank, size=3)))
    assert read_manifest(tmp_path / "three").identity == read_manifest(tmp_path / "one").identity


def test_shards_from_afar_are_encoded_to_the_same_bytes(chain, tmp_path):
    published = read_manifest(chain["unlabelled"])
    publish(tmp_path / "copied", published)
    config = {"images": [str(tmp_path / "copied")], "vae": str(chain["vae"]), "records_per_member": 4}
    config |= {"url": f"pipe:cat {chain['unlabelled']}/{{name}}", "cache_dir": str(tmp_path / "cache")}
    assert run_here("encode", tmp_path / "run", config) == 0
    assert read_manifest(tmp_path / "run").identity == read_manifest(chain["latents"]).identity
