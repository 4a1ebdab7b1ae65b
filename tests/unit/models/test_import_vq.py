"""VQ autoencoders from elsewhere: the latent is continuous, the decoder quantises; stages take them as parents."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compvis_reference import CompVisUNet, CompVisVqModel, checkpoint, randomise
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_chain import Chain, run_here
from tiny_painting import publish_denoiser, saved_grid

from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import QuantisedCodec, load_autoencoder, to_unit_range

WEIGHTS = "diffusion_pytorch_model.safetensors"


def images(count: int = 2, size_px: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def theirs() -> VQModel:
    """Of factor 4, with codes of another width than what the decoder's first convolution takes."""
    levels = 3
    model = VQModel(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        latent_channels=4,
        vq_embed_dim=3,
        num_vq_embeddings=40,
        sample_size=32,
        scaling_factor=1.0,
    )
    return randomise(model, 0)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("diffusers") / "vq"
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vq(folder) -> Path:
    """The published run."""
    return imported(folder.parent / "run", "autoencoder", folder)


def imported(out: Path, part: str, path: Path, **keys: object) -> Path:
    assert run_here("import", out, {"part": part, "path": str(path), **keys}) == 0
    return out


def refusal(capsys, stage: str, out: Path, config: dict[str, object]) -> str:
    capsys.readouterr()
    assert run_here(stage, out, config) == 2
    assert not (out / "manifest.json").exists()
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    return said


@torch.no_grad()
def test_the_latent_is_what_diffusers_encodes_and_the_nearest_codes_are_decoded(theirs, vq):
    published, x = load_autoencoder(vq), images()
    z = theirs.encode(x).latents
    mean, std = published.codec.moments(x)
    assert torch.equal(mean, z)
    assert not std.any()
    assert std.shape == mean.shape == (2, *published.codec.latent_shape) == (2, 3, 8, 8)
    assert torch.equal(published.codec.latent(mean, std, torch.randn(z.shape)), z)
    decoded = published.codec.decode(z)
    torch.testing.assert_close(decoded, theirs.decode(z).sample, rtol=0, atol=1e-5)
    assert (decoded - theirs.decode(z, force_not_quantize=True).sample).abs().max() > 0.05
    info = read_manifest(vq).info
    assert (info["latent_scale"], info["resolution"], info["source"]) == (1.0, 32, "diffusers VQModel")


@torch.no_grad()
def test_an_images_codes_do_not_depend_on_the_rest_of_the_batch(vq):
    codec = load_autoencoder(vq).codec
    z = 3 * torch.randn(5, *codec.latent_shape, generator=torch.Generator().manual_seed(1))
    together = codec.decoder_input(z)
    assert all(torch.equal(codec.decoder_input(z[i : i + 1])[0], together[i]) for i in range(5))
    codes, found = codec.vae.quantize.embedding.weight, together.permute(0, 2, 3, 1).reshape(-1, 1, 3)
    assert (found - codes).abs().amax(dim=2).amin(dim=1).max() < 1e-5


@torch.no_grad()
def test_a_scale_is_applied_to_the_latent_and_taken_off_before_quantisation(theirs, folder, tmp_path):
    run = imported(tmp_path / "run", "autoencoder", folder, latent_scale=0.5, resolution=16)
    codec, x = load_autoencoder(run).codec, images(size_px=16)
    assert codec.latent_shape == (3, 4, 4)
    z0 = codec.latent(*codec.moments(x), torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(z0, theirs.encode(x).latents / 2)
    torch.testing.assert_close(codec.decode(z0), theirs(x).sample, rtol=0, atol=1e-5)


def test_a_folder_that_does_not_say_its_scale_has_scale_1(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    change_json(tmp_path / "old/config.json", scaling_factor=None)
    assert read_manifest(imported(tmp_path / "run", "autoencoder", tmp_path / "old")).info["latent_scale"] == 1.0


def test_encode_train_ldm_sample_and_export_take_it_as_a_parent(theirs, chain: Chain, vq, tmp_path):
    latents = chain.make("latents", tmp_path / "latents", vae=str(vq))
    assert read_manifest(latents).info["encoder_id"] == read_manifest(vq).info["encoder_id"]
    shard = open_shards(chain["unlabelled"], read_manifest(chain["unlabelled"]))[0]
    key, pixels = shard.sidecar.keys[1], Image.open(io.BytesIO(shard.image(1))).convert("RGB")
    moments = RecordsByKey([(latents, read_manifest(latents))], "moments")([key])[0]
    with torch.no_grad():
        z = theirs.encode(to_unit_range(torch.from_numpy(np.array(pixels))[None])).latents[0]
    np.testing.assert_allclose(moments[0], z.numpy(), rtol=2e-3, atol=2e-3)  # fp16
    assert not moments[1].any()
    ldm = chain.make("ldm", tmp_path / "ldm", latents=str(latents), vae=str(vq))
    config = {"denoiser": str(ldm), "decoder": str(vq)}
    assert run_here("sample", tmp_path / "sampled", {**config, "per_class": 2, "solver": {"steps": 2}}) == 0
    assert read_manifest(tmp_path / "sampled").num_samples == 2
    assert run_here("export", tmp_path / "exported", config) == 0
    index = json.loads((tmp_path / "exported/model/model_index.json").read_text())
    assert index["vqvae"] == ["diffusers", "VQModel"]


def test_paint_decodes_with_it(vq, tmp_path):
    denoiser, grid = publish_denoiser(tmp_path / "denoiser", vq), saved_grid(tmp_path / "grid.npz", 2, 2)
    config = {"denoiser": str(denoiser), "decoder": str(vq), "grid": {"source": str(grid)}, "steps": 2, "stride": 8}
    assert run_here("paint", tmp_path / "run", config) == 0
    assert np.asarray(Image.open(tmp_path / "run/painting.png")).shape == (64, 64, 3)


def test_an_adapted_decoder_keeps_encoder_and_codes(chain: Chain, vq, tmp_path):
    adapted = chain.make("decoder", tmp_path / "run", vae=str(vq))
    assert read_manifest(adapted).info["encoder_id"] == read_manifest(vq).info["encoder_id"]
    before, after = (load_file(run / "model" / WEIGHTS) for run in (vq, adapted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert isinstance(load_autoencoder(adapted).codec, QuantisedCodec)


def test_train_vae_does_not_start_from_it(chain: Chain, vq, tmp_path, capsys):
    message = refusal(capsys, "train-vae", tmp_path / "run", chain.config("vae", start=str(vq)))
    assert f"start: {vq} is a VQModel, and this trains a AutoencoderKL; leave start out" in message


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False], ids=["inside an LDM", "alone"])
def test_a_compvis_first_stage_gives_its_own_numbers(whole, tmp_path):
    original = randomise(CompVisVqModel(z_channels=4, dim=3), 2)
    unet = CompVisUNet(32, (1, 2), (False, True), 1, 16)
    state = checkpoint(unet, original, None) if whole else {**original.state_dict(), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "vq.ckpt")
    run = imported(tmp_path / "run", "autoencoder", tmp_path / "vq.ckpt", resolution=16)
    published, x = load_autoencoder(run), images(size_px=16)
    assert published.info["latent_scale"] == 1.0
    mean, std = published.codec.moments(x)
    z = original.encode(x)
    assert z.std() > 0.3
    assert (mean - z).abs().max() <= 1e-5
    assert not std.any()
    assert (published.codec.decode(z) - original.decode(z)).abs().max() <= 1e-5
    assert (original.decode(z) - original.decoder(original.post_quant_conv(z))).abs().max() > 0.05


def test_a_denoiser_of_vq_latents_is_imported_with_its_own_autoencoder_only(folder, vq, tmp_path, capsys):
    first_stage, unet = (
        randomise(model, 3) for model in (CompVisVqModel(), CompVisUNet(32, (1, 2), (False, True), 1, 16))
    )
    torch.save({"state_dict": checkpoint(unet, first_stage, None)}, tmp_path / "ldm.ckpt")
    vae = imported(tmp_path / "vae", "autoencoder", tmp_path / "ldm.ckpt", resolution=32)
    keys = {"part": "denoiser", "path": str(tmp_path / "ldm.ckpt"), "head_channels": 16}
    assert run_here("import", tmp_path / "ldm", {**keys, "vae": str(vae)}) == 0
    info = read_manifest(tmp_path / "ldm").info
    assert (info["encoder_id"], info["latent_scale"]) == (read_manifest(vae).info["encoder_id"], 1.0)
    other = imported(tmp_path / "other", "autoencoder", folder, resolution=64)
    message = refusal(capsys, "import", tmp_path / "refused", {**keys, "vae": str(other)})
    assert "the VAE does not match the latents" in message


def change_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def drop_codes(path: Path) -> None:
    tensors = load_file(path)
    del tensors["quantize.embedding.weight"]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).write_bytes(b"rubbish"), "cannot be loaded as VQModel"),
        (lambda f: drop_codes(f / WEIGHTS), "1 missing keys, such as quantize.embedding.weight"),
        (lambda f: change_json(f / "config.json", norm_type="spatial"), "norm_type is 'spatial' (MoVQ)"),
        (lambda f: change_json(f / "config.json", _class_name="AutoencoderTiny"), "expected AutoencoderKL or VQModel"),
    ],
)
def test_a_damaged_folder_or_one_of_another_build_is_refused_with_the_reason(folder, tmp_path, capsys, damage, message):
    shutil.copytree(folder, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    keys = {"part": "autoencoder", "path": str(tmp_path / "damaged")}
    said = refusal(capsys, "import", tmp_path / "refused", keys)
    assert message in said
    assert str(tmp_path / "damaged") in said
