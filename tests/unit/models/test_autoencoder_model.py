"""Autoencoder: the published sizes, the codec, and folders that plain diffusers loads."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

from hdtrain.config.presets import AUTOENCODERS, DISCRIMINATOR_CHANNELS
from hdtrain.errors import ManifestError
from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.latent_space import check_same_latent_space
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.autoencoder import LatentCodec, build_autoencoder, load_autoencoder, to_uint8, to_unit_range
from hdtrain.models.denoiser import load_denoiser
from hdtrain.models.discriminator import PatchDiscriminator


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        vae = build_autoencoder("kl-f4", 256)
        assert count(vae.encoder, vae.quant_conv) == 22_351_280
        assert count(vae.decoder, vae.post_quant_conv) == 32_960_783
        assert count(build_autoencoder("kl-f8", 256)) == 83_653_863
        assert count(PatchDiscriminator(64)) == 2_765_633


@pytest.mark.parametrize("preset", AUTOENCODERS)
def test_every_autoencoder_shrinks_by_its_factor_and_gives_the_size_back(preset):
    with torch.device("meta"):
        vae = build_autoencoder(preset, 64)
        codec = LatentCodec(vae, 1.0)
        mean, std = codec.moments(torch.empty(2, 3, 64, 64))
        assert mean.shape == std.shape == (2, *codec.latent_shape)
        assert codec.latent_shape[1] == 64 // AUTOENCODERS[preset].downsample_factor
        assert codec.decode(mean).shape == (2, 3, 64, 64)


def test_every_autoencoder_has_a_discriminator():
    assert DISCRIMINATOR_CHANNELS.keys() == AUTOENCODERS.keys()


@pytest.mark.parametrize("size", [32, 64, 256])
def test_the_discriminator_scores_patches(size):
    with torch.device("meta"):
        scores = PatchDiscriminator(16)(torch.empty(2, 3, size, size))
    assert scores.shape == (2, 1, size // 8 - 2, size // 8 - 2)


def test_pixels_survive_the_way_to_unit_range_and_back_and_the_rule_of_rounding_is_to_the_nearest():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16).permute(0, 2, 3, 1).contiguous()
    x = to_unit_range(pixels)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), pixels)
    values = torch.linspace(-1.2, 1.2, 3 * 1001).view(1, 3, 1, 1001)
    expected = np.clip(np.rint((values.double().numpy() + 1) * 127.5), 0, 255)
    got = to_uint8(values).permute(0, 3, 1, 2).numpy()
    assert (got == expected).mean() > 0.999  # fp32 against fp64 at the halves
    assert np.abs(got - expected).max() <= 1


def test_the_codec_scales_latents_to_unit_variance_and_takes_the_scale_off_before_decoding(chain):
    published = load_autoencoder(chain["vae"])
    codec, noise = published.codec, torch.randn(2, 3, 8, 8)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    posterior = codec.vae.encode(x).latent_dist
    z0 = codec.latent(*codec.moments(x), noise)
    torch.testing.assert_close(z0, (posterior.mean + posterior.std * noise) * published.info["latent_scale"])
    torch.testing.assert_close(codec.decode(z0), codec.vae.decode(posterior.mean + posterior.std * noise).sample)
    assert not any(p.requires_grad for p in codec.parameters())


def test_plain_diffusers_loads_a_published_autoencoder_with_its_scale(chain):
    info = read_manifest(chain["vae"]).info
    plain = AutoencoderKL.from_pretrained(chain["vae"] / "model")
    ours = load_autoencoder(chain["vae"]).codec
    z0 = torch.randn(2, 3, 8, 8)
    assert plain.config.scaling_factor == pytest.approx(info["latent_scale"], rel=1e-12)
    with torch.no_grad():
        assert torch.equal(plain.decode(z0 / plain.config.scaling_factor).sample, ours.decode(z0))


def test_plain_diffusers_loads_a_published_denoiser_which_holds_the_moving_average(chain):
    folder = chain["ldm"] / "model"
    # Frozen like ours: with a gradient wanted, torch rounds otherwise on some CPUs.
    plain, ours = UNet2DModel.from_pretrained(folder).requires_grad_(False), load_denoiser(chain["ldm"])
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 700])
    with torch.no_grad():
        assert torch.equal(plain(z, t).sample, ours(z, t).sample)
    latest = find_latest(chain["ldm"] / "checkpoints")
    ema = load_file(latest / "denoiser.ema.safetensors")
    raw = load_file(latest / "denoiser.weights.safetensors")
    for name, value in plain.named_parameters():
        assert torch.equal(value, ema[f"unet.{name}"])
    assert any(not torch.equal(ema[name], raw[name]) for name in raw)
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.num_train_timesteps == 1000


def test_the_adapted_decoder_keeps_the_encoder_and_the_scale(chain):
    plain, adapted = (load_autoencoder(chain[name]) for name in ("vae", "decoder"))
    assert adapted.encoder_id == plain.encoder_id
    assert adapted.codec.scale == plain.codec.scale
    before, after = plain.codec.vae.state_dict(), adapted.codec.vae.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_the_latent_scale_is_one_over_the_std_of_latents(chain):
    info = read_manifest(chain["vae"]).info
    mean, std = torch.tensor(info["latent_mean"]), torch.tensor(info["latent_std"])
    overall = ((std**2 + mean**2).mean() - mean.mean() ** 2).sqrt()
    assert info["latent_scale"] == pytest.approx(1 / float(overall), rel=1e-5)
    assert info["latent_stats_images"] == 20


def test_an_autoencoder_of_factor_8_trains_and_gives_latents_of_an_eighth(chain, tmp_path):
    run = chain.make("vae", tmp_path / "vae", preset="kl-f8-tiny")
    assert read_manifest(run).info["preset"] == "kl-f8-tiny"
    assert load_autoencoder(run).codec.latent_shape == (4, 4, 4)


@pytest.mark.parametrize(("key", "value"), [("encoder_id", "fedcba9876543210"), ("latent_scale", 0.25)])
def test_other_latent_spaces_are_refused_with_both_named(chain, key, value):
    ours = {"encoder_id": "0123456789abcdef", "latent_scale": 0.5}
    check_same_latent_space("latents a", ours, chain.root / "vae", dict(ours))
    with pytest.raises(ManifestError) as error:
        check_same_latent_space("latents a", ours, chain.root / "vae", {**ours, key: value})
    for word in ("latents a", str(chain.root / "vae"), str(ours[key])[:12], str(value)[:12]):
        assert word in str(error.value)
