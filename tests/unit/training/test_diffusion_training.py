"""`train-ldm`: its objectives, its space, and the figures that it logs."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from PIL import Image
from tiny_chain import READER, run_here, train_config

from hdtrain.config.load import validate
from hdtrain.config.training import NoiseScheduleConfig, TrainLdmConfig
from hdtrain.data.latents import TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import generator
from hdtrain.errors import ConfigError
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import load_autoencoder
from hdtrain.models.denoiser import load_denoiser
from hdtrain.training.fixed_noise import FixedNoise

ZERO = {"zero_terminal_snr": True}
SMALL = {**READER, "resolution": 16}


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def figures(run, name: str) -> list[float]:
    return [row[name] for row in rows(run) if name in row]


def decoded(run) -> list[np.ndarray]:
    shards = open_shards(run, read_manifest(run))
    data = [shard.image(i) for shard in shards for i in range(shard.sidecar.samples)]
    return [np.asarray(Image.open(io.BytesIO(one)), np.int16) for one in data]


@pytest.fixture(scope="module")
def v_model(chain, tmp_path_factory):
    """v-prediction with zero terminal SNR."""
    folder = tmp_path_factory.mktemp("v") / "ldm"
    return chain.make("ldm", folder, prediction="v_prediction", schedule=ZERO)


@pytest.fixture(scope="module")
def pixel_model(chain, tmp_path_factory):
    """A denoiser of 16 px images."""
    folder = tmp_path_factory.mktemp("pixels") / "ldm"
    assert run_here("train-ldm", folder, pixel_config(chain, images=120)) == 0
    return folder


def pixel_config(chain, images: int = 8, **changes) -> dict:
    config = {"images": [str(chain["unlabelled"])], "reader": SMALL, "preset": "tiny"}
    config |= train_config(images, visualise_every_images=images)
    config["optim"] = {"lr": 2e-3, "warmup_images": 0}
    return config | {"schedule": ZERO, "prediction": "sample"} | changes


@pytest.mark.parametrize("guided", [False, True])
def test_plain_diffusers_gives_the_images_of_sample_from_the_published_folder(chain, v_model, tmp_path, guided):
    """Its scheduler knows the prediction, the rescaled β and where sampling begins; at g = 500 it shows ϕ."""
    guide = chain.make("guide", tmp_path / "guide", model={**chain.config("guide")["model"], "schedule": ZERO})
    changes = {"classifier": str(guide), "guidance": 500.0} if guided else {"classifier": None}
    run = chain.make(
        "candidates",
        tmp_path / "run",
        denoiser=str(v_model),
        solver={"steps": 5},
        per_class=2,
        **changes,
    )
    unet = UNet2DModel.from_pretrained(v_model / "model")
    scheduler = DDIMScheduler.from_pretrained(v_model / "model" / "scheduler")
    vae = AutoencoderKL.from_pretrained(chain["decoder"] / "model")
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    z = torch.stack([torch.randn(3, 8, 8, generator=generator(0, "sample", i)) for i in range(2)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(unet(z, t).sample, t, z).prev_sample
        x = vae.decode(z / vae.config.scaling_factor).sample
    expected = ((x + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    worst = max(np.abs(ours - theirs).max() for ours, theirs in zip(decoded(run), expected, strict=False))
    assert worst > 3 if guided else worst <= 1


def test_the_manifest_says_what_the_denoiser_predicts_and_under_which_schedule(v_model, chain):
    info = read_manifest(v_model).info
    assert (info["prediction"], info["schedule"]["zero_terminal_snr"]) == ("v_prediction", True)
    assert (info["space"], info["encoder_id"]) == ("latents", read_manifest(chain["vae"]).info["encoder_id"])
    assert read_manifest(chain["ldm"]).info["prediction"] == "epsilon"


def test_a_guide_of_another_terminal_snr_is_refused(chain, v_model, tmp_path, capsys):
    config = chain.config("candidates", denoiser=str(v_model))
    assert run_here("sample", tmp_path / "run", config) == 2
    assert "were trained with different noise schedules" in capsys.readouterr().err


CONFIG = {"latents": "a", "vae": "b", "duration": {"images": 1}}
PIXELS = {"images": ["a"], "duration": {"images": 1}}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({**CONFIG, "schedule": ZERO}, "zero_terminal_snr does not go with prediction=epsilon: at the last timestep"),
        ({**CONFIG, "schedule": ZERO, "prediction": "sample", "min_snr_gamma": 5}, "the last timestep would weigh"),
        ({**CONFIG, "loss": "l1", "min_snr_gamma": 5}, "does not go with loss=l1"),
        ({**CONFIG, "images": ["c"]}, "images trains in pixel space, latents and vae in a latent space"),
        ({**PIXELS, "vae": "b"}, "images trains in pixel space, vae in a latent space"),
        ({"latents": "a", "duration": {"images": 1}}, "got latents alone"),
        ({"duration": {"images": 1}}, "give latents and vae, or images to train in pixel space; got neither"),
        ({**CONFIG, "reader": {"resolution": 64}}, "reader belongs to images"),
        ({**PIXELS, "reader": {"weights": [1.0, 2.0]}}, "reader.weights has 2 numbers for 1 data sets"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_reason(tree, said):
    with pytest.raises(ConfigError) as caught:
        validate(TrainLdmConfig, tree, "x")
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_min_snr_weighs_the_loss_and_leaves_the_error_by_noise_level_alone(chain, tmp_path):
    plain, weighted = (
        chain.make("ldm", tmp_path / str(gamma), min_snr_gamma=gamma, duration={"images": 4}) for gamma in (None, 0.02)
    )
    (ours,), (theirs,) = rows(weighted), rows(plain)
    by_noise = [name for name in theirs if name.startswith("loss_by_noise/")]
    assert {name: ours[name] for name in by_noise} == {name: theirs[name] for name in by_noise}
    t = torch.randint(1000, (4,), generator=generator(0, "timestep", 0))
    snr = (alpha := NoiseSchedule(NoiseScheduleConfig()).alphas_cumprod[t]) / (1 - alpha)
    bins = (t // 100).tolist()
    assert len(set(bins)) == 4, "each image has a bin to itself, so its error is known"
    errors = torch.tensor([theirs[f"loss_by_noise/{i}"] for i in bins])
    assert theirs["loss/diffusion"] == pytest.approx(float(errors.mean()), rel=1e-5)
    expected = (errors * torch.minimum(torch.ones(4), 0.02 / snr)).mean()
    assert ours["loss/diffusion"] == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) < 0.9 * theirs["loss/diffusion"]


def by_hand(run, latents, chain, count: int) -> float:
    """The ε-loss of a published denoiser on the first `count` latents, noise and timesteps as documented."""
    source = TrainingLatents([(latents, read_manifest(latents))], 0)
    codec, unet = load_autoencoder(chain["vae"]).codec, load_denoiser(run)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    losses = []
    for i in range(count):
        batch = source.batch(range(i, i + 1))
        draw = {
            name: torch.randn(3, 8, 8, generator=generator(0, f"fixed-{name}", i)) for name in ("posterior", "noise")
        }
        z0 = (torch.from_numpy(batch.mean) + torch.from_numpy(batch.std) * draw["posterior"]) * codec.scale
        t = int((i + 0.5) * 1000 / count)
        z_t = alpha_bar[t].sqrt() * z0 + (1 - alpha_bar[t]).sqrt() * draw["noise"]
        losses.append((unet(z_t.float(), t).sample - draw["noise"]).square().mean())
    return float(torch.stack(losses).mean())


def test_the_validation_loss_is_that_of_the_held_out_latents_under_the_published_weights(chain, tmp_path):
    held_out = chain["labelled-latents"]
    config = {"validation": str(held_out), "validation_images": 10, "duration": {"images": 8}}
    run = chain.make("ldm", tmp_path / "ldm", **config)
    found = figures(run, "validation/loss_ema")
    assert found[-1] == pytest.approx(by_hand(run, held_out, chain, 10), rel=1e-5)
    assert found[-1] != figures(run, "validation/loss")[-1]
    assert not figures(run, "fixed_noise/loss")


def test_without_a_validation_set_the_loss_on_fixed_noise_is_that_of_training_latents(chain):
    count = read_manifest(chain["latents"]).num_samples
    assert figures(chain["ldm"], "fixed_noise/loss_ema")[-1] == pytest.approx(
        by_hand(chain["ldm"], chain["latents"], chain, count), rel=1e-5
    )
    assert not figures(chain["ldm"], "validation/loss")


def test_the_loss_on_fixed_noise_is_shared_out_over_ranks_without_changing(chain, monkeypatch):
    source = TrainingLatents([(chain["labelled-latents"], read_manifest(chain["labelled-latents"]))], 0)
    codec, model = load_autoencoder(chain["vae"]).codec, torch.nn.Conv2d(3, 3, 1)
    read = []

    def share(rank: int, size: int) -> float:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        fixed = FixedNoise(source, 1000, codec, NoiseSchedule(NoiseScheduleConfig()), 0)
        read.append([index for indices, _ in fixed._batches for index in indices])
        return fixed.loss(
            model, lambda model, z0, noise, t, _: (model(z0) - noise * t.view(-1, 1, 1, 1)).abs().mean((1, 2, 3))
        )

    whole = share(0, 1)
    for size in (2, 3, 5):
        read.clear()
        assert sum(share(rank, size) for rank in range(size)) == pytest.approx(whole, rel=1e-13)
        assert sorted(index for part in read for index in part) == list(range(source.sizes.sum()))


def test_a_validation_set_of_another_kind_or_space_is_refused(chain, tmp_path, capsys):
    other = chain.make("labelled-latents", tmp_path / "latents", vae=str(chain["other-vae"]))
    for validation, said in [
        (chain["labelled"], "is of kind 'images', but training is on latents"),
        (other, "belongs to"),
    ]:
        assert run_here("train-ldm", tmp_path / "run", chain.config("ldm", validation=str(validation))) == 2
        assert f"{validation} {said}" in capsys.readouterr().err


def test_a_pixel_space_denoiser_learns_the_colours_of_its_images_and_needs_no_decoder(chain, pixel_model, tmp_path):
    losses = figures(pixel_model, "fixed_noise/loss")
    assert losses[-1] < 0.4 * losses[0]
    info = read_manifest(pixel_model).info
    assert (info["space"], info["resolution"], info["resize"]) == ("pixels", 16, "squash")
    assert "encoder_id" not in info
    config = {"decoder": None, "classifier": None, "per_class": 4, "solver": {"steps": 20}}
    run = chain.make("candidates", tmp_path / "run", denoiser=str(pixel_model), **config)
    images = np.stack(decoded(run))
    assert images.shape == (4, 16, 16, 3)
    # The images are around (200, 140, 190); noise would be around (127, 127, 127).
    colour = images.mean(axis=(0, 1, 2))
    assert colour[0] > 150
    assert colour[2] > 150
    assert colour[1] < colour[0] - 20


def test_models_of_another_space_are_refused_beside_a_denoiser_of_pixels(chain, pixel_model, tmp_path, capsys):
    plain = {"denoiser": str(pixel_model), "decoder": None, "classifier": None}
    for changes, said in [
        (
            {**plain, "decoder": str(chain["decoder"])},
            "was trained on pixels and gives images itself; leave decoder out",
        ),
        ({**plain, "classifier": str(chain["guide"])}, f"{chain['guide']} cannot guide it, being trained on latents"),
        ({**plain, "denoiser": str(chain["ldm"])}, "name an autoencoder of it: decoder=RUN"),
    ]:
        assert run_here("sample", tmp_path / "run", chain.config("candidates", **changes)) == 2
        assert said in capsys.readouterr().err


def test_flips_turn_the_images_of_pixel_space(chain, tmp_path):
    first = {
        flips: rows_of_one_step(chain, tmp_path / str(flips), reader={**SMALL, "flips": flips})["loss/diffusion"]
        for flips in (True, False)
    }
    assert first[True] != first[False]


def rows_of_one_step(chain, folder, **changes) -> dict:
    assert run_here("train-ldm", folder, pixel_config(chain, 4, **changes)) == 0
    return rows(folder)[0]


def test_validation_images_of_pixel_space_are_read_like_the_training_images(chain, tmp_path):
    row = rows_of_one_step(chain, tmp_path / "run", validation=str(chain["test"]), validation_images=5)
    assert {"validation/loss", "validation/loss_ema"} <= row.keys()
    other = rows_of_one_step(chain, tmp_path / "other", validation=str(chain["labelled"]), validation_images=5)
    assert other["validation/loss"] != row["validation/loss"]
