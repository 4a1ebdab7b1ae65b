"""Training can begin with the weights of a published model, and refuses one of another size."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from tiny_chain import run_here

from hdtrain.errors import CheckpointError, ManifestError
from hdtrain.formats.manifest import Manifest, publish, read_manifest
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.models.denoiser import build_denoiser
from hdtrain.models.start import start_from

TINY_STEP = {"optim": {"lr": 1e-9, "weight_decay": 0.0, "warmup_from": 0.0}}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def furthest(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("name", ["vae", "ldm"])
def test_a_run_with_tiny_steps_ends_where_it_started(chain, tmp_path, name):
    fresh = chain.make(name, tmp_path / "fresh", **TINY_STEP, seed=3)
    started = chain.make(name, tmp_path / "started", **TINY_STEP, seed=3, start=str(chain[name]))
    assert furthest(started, chain[name]) < 1e-6
    assert furthest(fresh, chain[name]) > 1e-3
    parent = read_manifest(started).parents["start"]
    assert parent.identity == read_manifest(chain[name]).identity


def test_a_start_of_another_size_is_refused_with_the_first_differing_weights(chain, tmp_path, capsys):
    config = chain.config("ldm", preset="small", start=str(chain["ldm"]))
    assert run_here("train-ldm", tmp_path / "run", config) == 2
    said = capsys.readouterr().err
    assert f"start: {chain['ldm']} (preset tiny) is of another size" in said
    assert "conv_in.weight is (32, 3, 3, 3), expected (64, 3, 3, 3)" in said
    assert "more; choose the preset that it has" in said


def test_the_size_of_images_is_that_of_the_new_run_and_the_weights_can_be_trained(chain):
    vae = start_from(build_autoencoder("kl-f4-tiny", 64), chain["vae"])
    assert vae.config["sample_size"] == 64
    assert vae.training
    assert all(parameter.requires_grad for parameter in vae.parameters())
    fresh = build_autoencoder("kl-f4-tiny", 64)
    assert start_from(fresh, None) is fresh


def test_what_shapes_do_not_tell_is_the_starts(tmp_path):
    unet = build_denoiser("tiny", 3, 8)
    other = UNet2DModel.from_config({**unet.config, "attention_head_dim": 16, "downsample_padding": 0})
    other.save_pretrained(tmp_path / "model")
    publish(
        tmp_path, Manifest(kind="denoiser", stage="import", fingerprint="f", commit="c", info={"preset": "imported"})
    )
    start = start_from(unet, tmp_path)
    z, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    unet.load_state_dict(other.state_dict())
    with torch.no_grad():
        wanted, got, misread = (model.eval()(z, t).sample for model in (other, start, unet))
    torch.testing.assert_close(got, wanted)
    assert (misread - wanted).abs().max() > 1e-3


def test_an_altered_start_and_one_of_another_class_are_refused(chain, tmp_path):
    shutil.copytree(chain["ldm"] / "model", tmp_path / "model")
    manifest = read_manifest(chain["ldm"])
    publish(tmp_path, manifest)
    with pytest.raises(CheckpointError, match="is a UNet2DModel, and this trains a AutoencoderKL"):
        start_from(build_autoencoder("kl-f4-tiny", 32), tmp_path)
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(ManifestError, match="missing or altered"):
        start_from(build_denoiser("tiny", 3, 8), tmp_path)
