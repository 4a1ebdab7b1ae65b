"""The stage `export`: plain diffusers loads the folder and draws what we draw; the card says where it comes from."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_chain import READER, run_here

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.models.autoencoder import Codec, PixelCodec, load_autoencoder
from hdtrain.models.denoiser import load_denoiser

PLAIN = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
noise = torch.Generator().manual_seed(5)
images = pipeline(batch_size=3, num_inference_steps=20, generator=noise, output_type="np").images
np.save(sys.argv[2], images)
assert not [name for name in sys.modules if name.startswith("hdtrain")]
"""
PIXEL_LDM = {
    "latents": None,
    "vae": None,
    "reader": READER,
    "prediction": "v_prediction",
    "schedule": {"zero_terminal_snr": True},
}


def plain_python(script: str, folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def ours(denoiser: Path, codec: Codec) -> np.ndarray:
    """What `sample` computes, in [0, 1] and before rounding."""
    info = read_manifest(denoiser).info
    unet = load_denoiser(denoiser)
    z0 = sample_latents(
        lambda z, t: unet(z, t).sample,
        NoiseSchedule(NoiseScheduleConfig(**info["schedule"])),
        SolverConfig(steps=20),
        torch.randn(3, *codec.latent_shape, generator=torch.Generator().manual_seed(5)),
        prediction=info["prediction"],
    )
    return ((codec.decode(z0) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def latent(chain, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "run"
    config = {
        "denoiser": str(chain["ldm"]),
        "decoder": str(chain["vae"]),
        "title": "Stripes | and dots",
        "license": "cc-by-4.0",
        "data_license": "CC0, drawn for a test.",
    }
    assert run_here("export", out, config) == 0
    return out


@pytest.fixture(scope="module")
def pixel(chain, tmp_path_factory) -> tuple[Path, Path]:
    """The denoiser, and its export."""
    root = tmp_path_factory.mktemp("pixel")
    denoiser = chain.make("ldm", root / "ldm", images=[str(chain["unlabelled"])], **PIXEL_LDM)
    assert run_here("export", root / "run", {"denoiser": str(denoiser)}) == 0
    return denoiser, root / "run"


def test_plain_diffusers_draws_the_images_that_our_sampler_draws_from_the_same_noise(chain, latent, tmp_path):
    plain_python(PLAIN, tmp_path, latent / "model", tmp_path / "images.npy")
    plain = np.load(tmp_path / "images.npy")
    expected = ours(chain["ldm"], load_autoencoder(chain["vae"]).codec)
    assert plain.shape == expected.shape == (3, 32, 32, 3)
    assert ((plain > 0) & (plain < 1)).mean() > 0.5
    assert np.abs(plain - expected).max() <= 1e-5


@pytest.mark.slow
def test_so_it_does_for_pixels_with_v_prediction_and_zero_terminal_snr(pixel, tmp_path):
    denoiser, exported = pixel
    plain_python(PLAIN, tmp_path, exported / "model", tmp_path / "images.npy")
    plain = np.load(tmp_path / "images.npy")
    assert ((plain > 0) & (plain < 1)).mean() > 0.5
    assert np.abs(plain - ours(denoiser, PixelCodec(32))).max() <= 1e-5
    index = json.loads((exported / "model/model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
    assert not (exported / "model/vqvae").exists()


def test_the_weights_are_the_published_ones_byte_for_byte_and_the_scale_is_the_manifests(chain, latent):
    name = "diffusion_pytorch_model.safetensors"
    for part, run in (("unet", "ldm"), ("vqvae", "vae")):
        assert sha256_file(latent / "model" / part / name) == read_manifest(chain[run]).files[f"model/{name}"]
    config = json.loads((latent / "model/vqvae/config.json").read_text())
    assert config["scaling_factor"] == read_manifest(chain["vae"]).info["latent_scale"]
    manifest = read_manifest(latent, ("export",))
    check_files(latent, manifest)
    assert set(manifest.files) == {
        path.relative_to(latent).as_posix() for path in (latent / "model").rglob("*") if path.is_file()
    }


def test_the_card_has_what_the_hub_reads_and_what_a_person_asks(chain, latent):
    card = (latent / "model/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["library_name"]) == ("cc-by-4.0", "diffusers")
    assert "latent-diffusion" in fields["tags"]
    vae, ldm, images = (read_manifest(chain[name]) for name in ("vae", "ldm", "unlabelled"))
    assert body.startswith("\n# Stripes | and dots\n")
    row = next(line for line in body.splitlines() if images.identity in line)
    assert "| 20 |" in row
    assert "unlabelled" in row
    assert "train-vae, encode" in row
    for fact in (
        "`tiny`", "`kl-f4-tiny`", repr(vae.info["latent_scale"]), vae.info["encoder_id"], "32 px", "0.9999", "epsilon",
        "linear, β 0.0001 to 0.02, 1000 timesteps", ldm.commit, ldm.identity, vae.identity,
        "The licence of the images: CC0, drawn for a test.",
    ):  # fmt: skip
        assert fact in body, fact
    files = dict(re.findall(r"^\| `(\S+\.safetensors)` \| \d+ \| `(\w+)` \|$", body, re.MULTILINE))
    assert files == {
        path.relative_to(latent / "model").as_posix(): sha256_file(path)
        for path in (latent / "model").rglob("*.safetensors")
    }
    assert str(chain.root) not in card


def test_the_code_in_the_card_runs(latent, tmp_path):
    card = (latent / "model/README.md").read_text()
    code = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert code
    assert "num_inference_steps=200" in code[1]
    script = code[1].replace('"FOLDER"', repr(str(latent / "model"))).replace("=200", "=4")
    plain_python(f"{script}\nassert len(images) == 4 and images[0].size == (32, 32)", tmp_path)


def test_a_table_cell_survives_any_name(pixel, chain, tmp_path):
    denoiser, _ = pixel
    config = {"denoiser": str(denoiser), "data_license": "ask\nthe | owner"}
    assert run_here("export", tmp_path / "run", config) == 0
    card = (tmp_path / "run/model/README.md").read_text()
    assert "license_name: see-model-card" in card
    assert "The licence of the images: ask the | owner." in card
    assert "unconditional diffusion model of image patches: a denoiser of pixels" in card.replace("\n", " ")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [("other-vae", "the VAE does not match the latents"), (None, "name an autoencoder of it: decoder=RUN")],
)
def test_a_denoiser_without_its_autoencoder_is_not_exported(chain, tmp_path, capsys, decoder, message):
    config = {"denoiser": str(chain["ldm"]), "decoder": str(chain[decoder]) if decoder else None}
    assert run_here("export", tmp_path / "run", config) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_denoiser_of_pixels_wants_no_decoder(chain, pixel, tmp_path, capsys):
    config = {"denoiser": str(pixel[0]), "decoder": str(chain["vae"])}
    assert run_here("export", tmp_path / "run", config) == 2
    assert "was trained on pixels and gives images itself; leave decoder out" in capsys.readouterr().err


def test_altered_weights_are_not_exported(chain, tmp_path, capsys):
    shutil.copytree(chain["ldm"], tmp_path / "ldm", ignore=shutil.ignore_patterns("checkpoints", "tb"))
    weights = tmp_path / "ldm/model/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    config = {"denoiser": str(tmp_path / "ldm"), "decoder": str(chain["vae"])}
    assert run_here("export", tmp_path / "run", config) == 2
    assert "missing or altered since it was published" in capsys.readouterr().err
