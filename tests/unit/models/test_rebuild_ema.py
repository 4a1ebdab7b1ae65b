"""`rebuild-ema`: the average of another length, from the snapshots of a real training."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_chain import run_here

from hdtrain.formats.manifest import read_manifest
from hdtrain.models.denoiser import load_denoiser
from hdtrain.models.ema import PowerFunction

STEPS, BATCH = 40, 4


@pytest.fixture(scope="module")
def trained(chain, tmp_path_factory):
    """A denoiser whose every step is kept: (run directory, weights after each step)."""
    run = tmp_path_factory.mktemp("ema") / "ldm"
    config = chain.config("ldm", ema={"snapshots": 8})
    config["duration"] = {"images": STEPS * BATCH, "checkpoint_every_images": BATCH, "keep_checkpoints": STEPS}
    config["duration"]["visualise_every_images"] = STEPS * BATCH
    assert run_here("train-ldm", run, config) == 0
    folders = sorted((run / "checkpoints").glob("step-*"))
    assert len(folders) == STEPS
    return run, [load_file(folder / "denoiser.weights.safetensors") for folder in folders]


def test_snapshots_are_written_as_often_as_asked(trained):
    run, _ = trained
    images = [int(path.stem.removeprefix("images-")) for path in sorted((run / "ema").iterdir())]
    assert images == [STEPS * BATCH * (i + 1) // 8 for i in range(8)]


@pytest.mark.parametrize("std", [0.10, 0.07])
def test_the_published_denoiser_has_the_average_of_its_weights_that_was_asked_for(trained, tmp_path, std):
    run, weights = trained
    assert run_here("rebuild-ema", tmp_path / "ema", {"denoiser": str(run), "std": std}) == 0
    rebuilt = dict(load_denoiser(tmp_path / "ema").named_parameters())
    error = spread = 0.0
    for name, value in rebuilt.items():
        average = torch.zeros_like(value, dtype=torch.float64)
        for update, step in enumerate(weights, 1):
            average.lerp_(step[f"unet.{name}"].double(), 1 - PowerFunction(std).beta(update))
        error += float((value - average).square().sum())
        spread += float((average - weights[-1][f"unet.{name}"]).square().sum())
    assert (error / spread) ** 0.5 < (1e-3 if std == 0.10 else 0.05)
    before, info = (read_manifest(path).info for path in (run, tmp_path / "ema"))
    assert info == {**{k: v for k, v in before.items() if k != "ema_decay"}, "ema_std": std}
    assert json.loads((tmp_path / "ema/model/scheduler/scheduler_config.json").read_text())["num_train_timesteps"]


def test_an_earlier_moment_must_be_a_snapshots(trained, tmp_path, capsys):
    run, _ = trained
    early = {"denoiser": str(run), "std": 0.1, "images": STEPS * BATCH // 2}
    assert run_here("rebuild-ema", tmp_path / "early", early) == 0
    assert read_manifest(tmp_path / "early").info["images_seen"] == STEPS * BATCH // 2
    assert run_here("rebuild-ema", tmp_path / "never", {**early, "images": 5}) == 2
    assert "no snapshot after 5 images; there are snapshots after 20, 40, 60" in capsys.readouterr().err


def test_without_snapshots_it_says_why(chain, tmp_path, capsys):
    config = chain.config("ldm", ema={"post_hoc": False})
    assert run_here("train-ldm", tmp_path / "ldm", config) == 0
    assert run_here("rebuild-ema", tmp_path / "ema", {"denoiser": str(tmp_path / "ldm"), "std": 0.1}) == 2
    assert "trained with ema.post_hoc=false" in capsys.readouterr().err
