"""The stage `encode`: what it caches is what plain diffusers computes."""

import io

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.records import RecordReader
from hdtrain.formats.shards import open_shards


def cached(run) -> dict[str, np.ndarray]:
    """Key to (2, c, h, w)."""
    found = {}
    for entry in read_manifest(run).shards:
        reader = RecordReader(run / entry.name)
        found |= dict(zip(reader.sidecar.keys, np.concatenate(reader.arrays()), strict=True))
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
