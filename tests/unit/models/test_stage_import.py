"""The stage `import`: models from diffusers and CompVis become parents of other stages; the rest is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from compvis_reference import CompVisAutoencoder, CompVisUNet, checkpoint, randomise
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_chain import run_here

from hdtrain.config.exchange import ImportConfig
from hdtrain.config.load import validate
from hdtrain.errors import ConfigError, WeightsError
from hdtrain.formats.fingerprint import fingerprint
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import load_autoencoder
from hdtrain.models.denoiser import as_function, build_denoiser, load_denoiser
from hdtrain.models.start import start_from
from hdtrain.recipe import load_recipe
from hdtrain.stages.preview_import import preview

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALE = 0.625


@pytest.fixture(scope="module")
def pipeline(chain, tmp_path_factory) -> Path:
    """The folder that `export` writes."""
    out = tmp_path_factory.mktemp("export") / "run"
    assert run_here("export", out, {"denoiser": str(chain["ldm"]), "decoder": str(chain["vae"])}) == 0
    return out / "model"


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.nn.Module]:
    """A U-Net of CompVis's, its moving average, and a first stage of factor 2."""

    def unet(seed: int) -> torch.nn.Module:
        return randomise(CompVisUNet(32, (1, 2), (False, True), 1, 16), seed)

    return {"unet": unet(0), "ema": unet(1), "first_stage": randomise(CompVisAutoencoder(), 2)}


@pytest.fixture(scope="module")
def ldm_file(theirs, tmp_path_factory) -> Path:
    """As LDM's training saves it."""
    path = tmp_path_factory.mktemp("compvis") / "ldm.ckpt"
    state = checkpoint(theirs["unet"], theirs["first_stage"], SCALE, theirs["ema"])
    torch.save({"state_dict": state, "epoch": 3, "global_step": 100, "optimizer_states": [{"lr": 1e-4}]}, path)
    return path


@pytest.fixture(scope="module")
def ldm_vae(ldm_file) -> Path:
    """The first stage of `ldm_file`, imported."""
    config = {"part": "autoencoder", "path": str(ldm_file), "resolution": 16}
    assert run_here("import", ldm_file.parent / "vae", config) == 0
    return ldm_file.parent / "vae"


def imported(out: Path, part: str, path: Path, **keys: object) -> Path:
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    assert run_here("import", out, {"part": part, "path": str(path), **keys}) == 0
    return out


def refusal(tmp_path: Path, capsys, part: str, path: Path, **keys: object) -> str:
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    capsys.readouterr()
    assert run_here("import", tmp_path / "refused", {"part": part, "path": str(path), **keys}) == 2
    assert not (tmp_path / "refused/manifest.json").exists()
    return capsys.readouterr().err


def images(run: Path) -> list[bytes]:
    return [
        bytes(shard.image(i)) for shard in open_shards(run, read_manifest(run)) for i in range(len(shard.sidecar.keys))
    ]


def test_what_was_exported_comes_back_as_the_same_models_and_samples_the_same_images(chain, pipeline, tmp_path):
    vae = imported(tmp_path / "vae", "autoencoder", pipeline)
    ldm = imported(tmp_path / "ldm", "denoiser", pipeline, vae=vae)
    before, after = (read_manifest(run).info for run in (chain["vae"], vae))
    assert [after[key] for key in ("encoder_id", "latent_scale", "resolution", "resize")] == [
        before[key] for key in ("encoder_id", "latent_scale", "resolution", "resize")
    ]
    before, after = (read_manifest(run).info for run in (chain["ldm"], ldm))
    for key in ("space", "encoder_id", "latent_scale", "schedule", "prediction", "parameters"):
        assert after[key] == before[key], key
    for ours, back in ((chain["vae"], vae), (chain["ldm"], ldm)):
        one, other = (load_file(run / "model" / WEIGHTS) for run in (ours, back))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    solver = {"per_class": 3, "solver": {"steps": 4}, "samples_per_shard": 3, "batch_size": 3}
    runs = [(chain["ldm"], chain["vae"], "before"), (ldm, vae, "after")]
    for denoiser, decoder, name in runs:
        config = {"denoiser": str(denoiser), "decoder": str(decoder), **solver}
        assert run_here("sample", tmp_path / name, config) == 0
    assert images(tmp_path / "before") == images(tmp_path / "after")
    assert run_here("export", tmp_path / "again", {"denoiser": str(ldm), "decoder": str(vae)}) == 0
    card = (tmp_path / "again/model/README.md").read_text()
    assert "`vae` was imported: what it was trained on before that is not recorded here." in card
    assert "No data set of hdtrain's is known to have been used." in card


def test_one_model_of_a_pipeline_can_be_imported_from_its_own_folder(chain, pipeline, tmp_path):
    vae = imported(tmp_path / "vae", "autoencoder", pipeline / "vqvae", latent_scale=0.5, resize="crop")
    info = read_manifest(vae).info
    assert (info["latent_scale"], info["resize"], info["resolution"]) == (0.5, "crop", 32)
    assert load_autoencoder(vae).codec.vae.config["scaling_factor"] == 0.5
    schedule = {"kind": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01}
    ldm = imported(tmp_path / "ldm", "denoiser", pipeline / "unet", vae=chain["vae"], schedule=schedule)
    info = read_manifest(ldm).info
    assert (info["schedule"]["kind"], info["schedule"]["beta_end"], info["prediction"]) == (
        "scaled_linear",
        0.01,
        "epsilon",
    )
    saved = json.loads((ldm / "model/scheduler/scheduler_config.json").read_text())
    assert (saved["beta_schedule"], saved["beta_end"]) == ("scaled_linear", 0.01)


@torch.no_grad()
def test_a_compvis_checkpoint_gives_its_own_numbers_through_our_stages(theirs, ldm_file, ldm_vae, tmp_path):
    published = load_autoencoder(ldm_vae)
    assert published.info["latent_scale"] == pytest.approx(SCALE, rel=1e-7)
    assert (published.info["resolution"], published.codec.latent_shape) == (16, (3, 8, 8))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, logvar = theirs["first_stage"].encode(x).chunk(2, dim=1)
    ours, std = published.codec.moments(x)
    assert (ours - mean).abs().max() <= 1e-5
    assert (std - (logvar / 2).exp()).abs().max() <= 1e-5
    assert (published.codec.decode(mean * SCALE) - theirs["first_stage"].decode(mean)).abs().max() <= 1e-5
    t = torch.tensor([1, 900])
    for name, keys in (("ema", {}), ("unet", {"ema": False})):
        ldm = imported(tmp_path / name, "denoiser", ldm_file, vae=ldm_vae, head_channels=16, **keys)
        assert (load_denoiser(ldm)(mean, t).sample - theirs[name](mean, t)).abs().max() <= 1e-5
    info = read_manifest(ldm).info
    assert info["schedule"] == {
        "kind": "scaled_linear",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "num_train_timesteps": 1000,
        "zero_terminal_snr": False,
    }
    assert info["encoder_id"] == published.encoder_id
    assert load_denoiser(ldm).config["sample_size"] == 8


def test_a_unet_alone_in_safetensors_takes_ldms_schedule(theirs, ldm_vae, tmp_path):
    save_file(theirs["unet"].state_dict(), tmp_path / "unet.safetensors")
    ldm = imported(tmp_path / "ldm", "denoiser", tmp_path / "unet.safetensors", vae=ldm_vae, head_channels=16)
    schedule = read_manifest(ldm).info["schedule"]
    assert (schedule["kind"], schedule["beta_start"], schedule["beta_end"]) == ("scaled_linear", 0.0015, 0.0195)


def test_a_denoiser_of_pixels_needs_no_autoencoder(tmp_path):
    unet = UNet2DModel(16, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2, layers_per_block=1)  # fmt: skip
    unet.save_pretrained(tmp_path / "ddpm")
    DDPMScheduler(prediction_type="v_prediction", beta_end=0.01).save_pretrained(tmp_path / "ddpm/scheduler")
    info = read_manifest(imported(tmp_path / "run", "denoiser", tmp_path / "ddpm", space="pixels")).info
    assert (info["space"], info["resolution"], info["prediction"]) == ("pixels", 16, "v_prediction")
    assert info["schedule"]["beta_end"] == 0.01
    config = {"denoiser": str(tmp_path / "run"), "per_class": 2, "solver": {"steps": 2}}
    assert run_here("sample", tmp_path / "sampled", config) == 0
    assert len(images(tmp_path / "sampled")) == 2


def test_a_denoiser_without_its_autoencoder_is_a_start_and_nothing_else(chain, pipeline, tmp_path, capsys):
    ldm = imported(tmp_path / "ldm", "denoiser", pipeline, space="unknown")
    config = {"denoiser": str(ldm), "decoder": str(chain["vae"]), "per_class": 1, "solver": {"steps": 2}}
    assert run_here("sample", tmp_path / "sampled", config) == 2
    assert "belongs to the autoencoder with encoder unknown" in capsys.readouterr().err


def test_weights_that_change_at_their_place_make_another_run(pipeline, tmp_path):
    shutil.copytree(pipeline / "vqvae", tmp_path / "one")
    shutil.copytree(pipeline / "vqvae", tmp_path / "two")

    def stands_for(folder: str) -> str:
        config = validate(ImportConfig, {"part": "autoencoder", "path": str(tmp_path / folder)}, "x")
        return fingerprint("import", config, {})

    assert stands_for("one") == stands_for("two")
    weights = tmp_path / "two" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert stands_for("one") != stands_for("two")


def test_the_autoencoder_of_another_source_is_refused(chain, pipeline, ldm_file, tmp_path, capsys):
    message = refusal(tmp_path, capsys, "denoiser", pipeline, vae=chain["other-vae"])
    encoders = [read_manifest(chain[name]).info["encoder_id"][:12] for name in ("vae", "other-vae")]
    assert "the VAE does not match the latents" in message
    assert all(encoder in message for encoder in encoders)
    message = refusal(tmp_path, capsys, "denoiser", ldm_file, vae=chain["vae"], head_channels=16)
    assert "the VAE does not match the latents" in message


def test_an_autoencoder_of_another_scale_or_size_is_refused(pipeline, ldm_file, tmp_path, capsys):
    scaled = imported(tmp_path / "scaled", "autoencoder", pipeline, latent_scale=0.5)
    message = refusal(tmp_path, capsys, "denoiser", pipeline, vae=scaled)
    assert "latent scale" in message
    assert "has 0.5" in message
    larger = imported(tmp_path / "larger", "autoencoder", pipeline, resolution=64)
    message = refusal(tmp_path, capsys, "denoiser", pipeline, vae=larger)
    assert "takes 3 channels of 8×8" in message
    assert "are 3 of 16×16; name the autoencoder that it was trained with" in message


def test_a_pipeline_without_the_class_asked_for_is_refused_with_what_it_has(pipeline, tmp_path, capsys):
    shutil.copytree(pipeline, tmp_path / "other")
    index = json.loads((pipeline / "model_index.json").read_text())
    index["vqvae"], index["unet"] = ["diffusers", "AutoencoderTiny"], ["diffusers", "UNet3DConditionModel"]
    (tmp_path / "other/model_index.json").write_text(json.dumps(index))
    message = refusal(tmp_path, capsys, "autoencoder", tmp_path / "other")
    assert "names no AutoencoderKL or VQModel; it has" in message
    assert "vqvae (AutoencoderTiny)" in message
    message = refusal(tmp_path, capsys, "denoiser", tmp_path / "other", space="pixels")
    assert "names no UNet2DModel or UNet2DConditionModel; it has" in message


def test_a_unet_that_looks_at_tokens_is_a_start_for_embeddings_of_ones_own(chain, pipeline, tmp_path, capsys):
    unet = build_denoiser("tiny-cond", 3, 8)
    unet.save_pretrained(tmp_path / "unet")
    shutil.copytree(pipeline / "scheduler", tmp_path / "unet/scheduler")
    ldm = imported(tmp_path / "ldm", "denoiser", tmp_path / "unet", vae=chain["vae"])
    started = as_function(start_from(build_denoiser("tiny-cond", 3, 8, embedding_dim=6), ldm)).eval()
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 900])
    with torch.no_grad():
        expected = unet.eval()(z, t, torch.zeros(2, 1, 64)).sample
        torch.testing.assert_close(started(z, t, torch.zeros(2, 1, 6)), expected)
    build_denoiser("tiny-cond", 3, 8, num_classes=4).save_pretrained(tmp_path / "classes")
    message = refusal(tmp_path, capsys, "denoiser", tmp_path / "classes", space="unknown")
    assert "is conditional (num_class_embeds=5)" in message


def change_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "vqvae" / WEIGHTS).unlink(), "cannot be loaded as AutoencoderKL"),
        (lambda f: (f / "vqvae" / WEIGHTS).write_bytes(b"rubbish"), "cannot be loaded as AutoencoderKL"),
        (lambda f: (f / "vqvae/config.json").unlink(), "config.json: no such file; the folder of diffusers' is not"),
        (lambda f: (f / "vqvae/config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json: expected a mapping, got list"),
        (lambda f: drop_tensor(f / "vqvae" / WEIGHTS), "its weights are not those of its config.json: 1 missing keys"),
        (lambda f: change_json(f / "vqvae/config.json", layers_per_block=2), "cannot be loaded as|missing keys"),
        (lambda f: change_json(f / "vqvae/config.json", scaling_factor=None), "does not say its latent_scale; give"),
        (lambda f: change_json(f / "vqvae/config.json", shift_factor=0.1), "its latents have a shift_factor"),
        (lambda f: change_json(f / "vqvae/config.json", use_quant_conv=False), "use_quant_conv is false"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_with_the_reason(pipeline, tmp_path, capsys, damage, message):
    shutil.copytree(pipeline, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    said = refusal(tmp_path, capsys, "autoencoder", tmp_path / "damaged")
    assert any(part in said for part in message.split("|")), said
    assert str(tmp_path / "damaged") in said


def drop_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "hdtrain has no β schedule 'squaredcos_cap_v2'; it has linear and"),
        ({"trained_betas": [0.1, 0.2]}, "hdtrain has no β schedule 'trained_betas'"),
        ({"prediction_type": "flow"}, "hdtrain has no prediction_type 'flow'; it has epsilon"),
        ({"beta_end": 1e-5}, "must be greater than beta_start"),
    ],
)
def test_a_schedule_that_we_have_not_is_refused(chain, pipeline, tmp_path, capsys, damage, message):
    shutil.copytree(pipeline, tmp_path / "damaged")
    change_json(tmp_path / "damaged/scheduler/scheduler_config.json", **damage)
    assert message in refusal(tmp_path, capsys, "denoiser", tmp_path / "damaged", vae=chain["vae"])


def test_a_dry_run_refuses_an_empty_folder(tmp_path):
    with pytest.raises(WeightsError, match="is no folder of diffusers'"):
        list(preview(ImportConfig(path=tmp_path, part="autoencoder"), tmp_path / "run"))


def test_a_place_that_holds_no_model_is_refused_with_what_was_expected(chain, pipeline, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path, capsys, "autoencoder", tmp_path / "empty")
    assert "is no folder of diffusers': expected model_index.json (a pipeline) or config.json (a model)" in message
    assert "is a run directory of hdtrain's already" in refusal(tmp_path, capsys, "autoencoder", chain["vae"])
    message = refusal(tmp_path, capsys, "autoencoder", pipeline / "unet")
    assert "its config.json is of class UNet2DModel, expected AutoencoderKL or VQModel" in message
    message = refusal(tmp_path, capsys, "denoiser", pipeline / "unet", vae=chain["vae"])
    assert "holds no scheduler/; give the whole pipeline's folder, or schedule.kind=" in message


class Callback:
    """What PyTorch Lightning leaves in a checkpoint."""


def test_a_checkpoint_that_would_run_code_is_refused_and_a_broken_file_too(ldm_file, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": {Callback: 1}}, tmp_path / "lightning.ckpt")
    message = refusal(tmp_path, capsys, "autoencoder", tmp_path / "lightning.ckpt", resolution=16)
    assert "reading it would run code of" in message
    assert "Callback" in message
    assert "torch.save({'state_dict': torch.load('lightning.ckpt', weights_only=False)['state_dict']}" in message
    whole = ldm_file.read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as weights" in refusal(
        tmp_path, capsys, "autoencoder", tmp_path / "half.ckpt", resolution=16
    )
    (tmp_path / "none.ckpt").write_bytes(b"no weights at all")
    assert "is it complete, and a weights file?" in refusal(tmp_path, capsys, "autoencoder", tmp_path / "none.ckpt")
    (tmp_path / "none.safetensors").write_bytes(b"no weights at all")
    assert "cannot be read as weights" in refusal(tmp_path, capsys, "autoencoder", tmp_path / "none.safetensors")


def test_what_a_compvis_file_does_not_say_must_be_given(theirs, ldm_file, ldm_vae, tmp_path, capsys):
    assert "does not say its resolution; give resolution=…" in refusal(tmp_path, capsys, "autoencoder", ldm_file)
    torch.save({"state_dict": checkpoint(theirs["unet"], theirs["first_stage"], None)}, tmp_path / "bare.ckpt")
    message = refusal(tmp_path, capsys, "autoencoder", tmp_path / "bare.ckpt")
    assert "does not say its latent_scale and resolution; give latent_scale=… resolution=…" in message
    message = refusal(tmp_path, capsys, "autoencoder", ldm_file, resolution=15)
    assert "it halves images 1 times; resolution=15 is no multiple of that" in message
    message = refusal(tmp_path, capsys, "denoiser", ldm_file, vae=ldm_vae, head_channels=48)
    assert "head_channels: 48 does not divide 64 channels" in message


def test_an_ldm_that_quantises_in_another_way_is_a_start_only(theirs, ldm_vae, tmp_path, capsys):
    state = checkpoint(theirs["unet"], theirs["first_stage"], None)
    state["first_stage_model.quantize.embed.weight"] = torch.zeros(4, 3)  # Gumbel's
    torch.save({"state_dict": state}, tmp_path / "vq.ckpt")
    message = refusal(tmp_path, capsys, "denoiser", tmp_path / "vq.ckpt", vae=ldm_vae, head_channels=16)
    assert "was trained with a VQ model of another build" in message
    assert "space=unknown makes it a start for train-ldm" in message
    message = refusal(tmp_path, capsys, "autoencoder", tmp_path / "vq.ckpt", resolution=16)
    assert "1 of its tensors have no place in diffusers' model, such as quantize.embed.weight" in message
    imported(tmp_path / "start", "denoiser", tmp_path / "vq.ckpt", space="unknown", head_channels=16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"part": "autoencoder", "vae": "v", "ema": False}, "part=autoencoder has no use for vae, ema; leave it out"),
        ({"part": "denoiser"}, "a denoiser of latents needs vae"),
        ({"part": "denoiser", "vae": "v", "latent_scale": 0.5}, "part=denoiser has no use for latent_scale"),
        ({"part": "denoiser", "vae": "v", "space": "pixels"}, "space=pixels has no use for vae"),
        ({"part": "denoiser", "space": "unknown", "resolution": 64}, "space=unknown has no use for resolution"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message):
    with pytest.raises(ConfigError) as error:
        validate(ImportConfig, {"path": "p", **keys}, "x")
    assert message in str(error.value)


def test_in_a_recipe_the_part_decides_which_keys_take_it(tmp_path):
    (tmp_path / "pipeline").mkdir()
    nodes = {
        "vae": {"stage": "import", "config": {"part": "autoencoder", "path": "pipeline"}},
        "ldm": {"stage": "import", "config": {"part": "denoiser", "path": "pipeline", "vae": "@vae"}},
        "sampled": {"stage": "sample", "config": {"denoiser": "@ldm", "decoder": "@vae", "per_class": 1}},
    }

    def problems(**sample: str) -> list[str]:
        nodes["sampled"]["config"] |= sample
        tree = {"name": "r", "out": "runs", "stages": nodes}
        text = yaml.safe_dump(tree).replace("path: pipeline", f"path: {tmp_path / 'pipeline'}")
        (tmp_path / "recipe.yaml").write_text(text)
        try:
            load_recipe(tmp_path / "recipe.yaml")
        except ConfigError as error:
            return error.problems
        return []

    assert problems() == []
    assert problems(decoder="@ldm", denoiser="@vae") == [
        "sampled: denoiser: '@vae' (import) publishes autoencoder, expected denoiser",
        "sampled: decoder: '@ldm' (import) publishes denoiser, expected autoencoder",
    ]
