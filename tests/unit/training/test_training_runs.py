"""Whole training runs in this process: what they log, how they stop, what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_chain import run_here

from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.manifest import read_manifest
from hdtrain.training.metrics import MetricWriter, image_grid


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


SCALARS = {
    "vae": {"loss/total", "loss/l1", "loss/kl", "loss/generator", "loss/discriminator", "loss/adversarial_weight"},
    "ldm": {"loss/diffusion", "latent/std", "grad_norm/denoiser"},
    "phi": {"loss/cross_entropy", "accuracy/train"},
    "guide": {"loss/cross_entropy", "accuracy/train"},
    "decoder": {"loss/total", "loss/l1", "loss/cross_entropy", "accuracy/reconstructions"},
}
IMAGES = {
    "vae": {"reconstructions"},
    "ldm": {"samples/ema", "samples/raw"},
    "phi": set(),
    "guide": {"noisy_latents"},
    "decoder": {"reconstructions"},
}


@pytest.mark.parametrize("name", SCALARS)
def test_tensorboard_and_jsonl_hold_the_same_figures_and_the_pictures(chain, name):
    run = chain[name] / "seed-0" if name in ("phi", "guide") else chain[name]
    lines = rows(run)
    steps = len(lines)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert [line["images"] for line in lines] == [4 * line["step"] for line in lines]
    board = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    expected = SCALARS[name] | {
        "images_per_sec",
        "data_wait",
        "lr",
        "mfu",
        "memory_gib",
        "step_sec/p50",
        "step_sec/p95",
    }
    assert expected <= set(board.Tags()["scalars"])
    for tag in expected:
        written = {line["step"]: line[tag] for line in lines if tag in line}
        assert written
        assert {e.step: e.value for e in board.Scalars(tag)} == pytest.approx(written, rel=1e-5)
    assert all(line["images_per_sec"] > 0 for line in lines)
    assert set(board.Tags()["images"]) >= IMAGES[name]
    for tag in IMAGES[name]:
        assert {e.step for e in board.Images(tag)} >= {1, steps}


def test_the_discriminator_joins_after_the_images_it_was_told(chain):
    lines = rows(chain["vae"])
    assert ["loss/discriminator" in line for line in lines] == [False, False, True, True]


def test_a_loss_that_is_not_finite_stops_with_step_rank_keys_and_the_last_good_checkpoint(chain, tmp_path, capsys):
    config = chain.config("ldm", optim={"lr": 1e30, "clip_grad_norm": 0.0})
    config["duration"] = {"images": 40, "checkpoint_every_images": 4}
    assert run_here("train-ldm", tmp_path / "ldm", config) == 2
    said = capsys.readouterr().err
    assert "train-ldm: loss is not finite at step 2 (rank 0: loss/diffusion nan" in said
    keys = {key for shard in chain["latents"].glob("shards/*.json") for key in json.loads(shard.read_text())["keys"]}
    named = said.split("keys of the batch: ")[1].split(")")[0].split(", ")
    assert len(named) == 4
    assert set(named) <= keys
    assert f"last good checkpoint: {tmp_path / 'ldm' / 'checkpoints' / 'step-00000001'}" in said
    assert not (tmp_path / "ldm" / "manifest.json").exists()


def test_running_statistics_survive_a_stop(chain, tmp_path):
    """A timm model with batch norm that goes on from step 3 of 6 ends as the one that ran through."""
    model = {"kind": "timm", "name": "test_resnet", "images": [str(chain["labelled"])], "reader": {"resolution": 32}}
    model["augmented_copies"] = 1
    config = {"model": model, "batch": {"global_batch_size": 4}, "seeds": [3, 4], "optim": {"lr": 1e-3}}
    config["duration"] = {"images": 24, "checkpoint_every_images": 4, "keep_checkpoints": 10}
    assert run_here("train-classifier", tmp_path / "whole", config) == 0
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / "manifest.json").unlink()
    (cut / "model" / "seed-4.safetensors").unlink()
    for step in (4, 5, 6):
        shutil.rmtree(cut / "seed-4" / "checkpoints" / f"step-{step:08d}")
    assert run_here("train-classifier", cut, config) == 0
    assert rows(cut / "seed-4")[-1]["step"] == 6
    assert (cut / "model" / "seed-4.safetensors").read_bytes() == (
        tmp_path / "whole/model/seed-4.safetensors"
    ).read_bytes()
    assert read_manifest(cut).identity == read_manifest(tmp_path / "whole").identity
    info = read_manifest(cut).info
    assert (info["seeds"], info["steps"], info["num_real"], info["num_augmented"]) == ([3, 4], 6, 20, 20)
    one, other = (load_file(cut / "model" / f"seed-{seed}.safetensors") for seed in (3, 4))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "name", ["ldm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vae", "phi", "guide", "decoder"))]
)
def test_bf16_trains_shows_and_publishes_fp32_weights(chain, name, tmp_path):
    stage, _ = chain.configs[name]
    config = chain.config(name, engine={"precision": "bf16"})
    config["duration"] = {"images": 8}
    assert run_here(stage, tmp_path / name, config) == 0
    published = next(path for path in (tmp_path / name / "model").iterdir() if path.suffix == ".safetensors")
    weights = load_file(published)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values()), "only bf16 weights"


def test_checkpoints_are_kept_as_many_as_asked(chain):
    assert len(list((chain["ldm"] / "checkpoints").glob("step-*"))) == 2
    assert find_latest(chain["ldm"] / "checkpoints").name == "step-00000004"


def test_what_a_killed_run_wrote_after_its_checkpoint_is_dropped(tmp_path):
    jsonl = tmp_path / "metrics.jsonl"
    with MetricWriter(jsonl, tmp_path / "tb", 0) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, step * 4, {"loss": float(step)})
    with jsonl.open("ab") as stream:
        stream.write(b'{"step": 4, "lo')  # cut off by the kill
    with MetricWriter(jsonl, tmp_path / "tb", 2) as writer:
        writer.scalars(3, 12, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in map(json.loads, jsonl.read_text().splitlines())] == [
        (1, 1),
        (2, 2),
        (3, 30),
    ]
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(1, 1), (2, 2), (3, 30)]


def test_grids_are_filled_row_by_row_with_a_white_gap():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[:] = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    grid = image_grid(images, columns=2)
    assert grid.shape == (6, 6, 3)
    assert [grid[0, 0, 0], grid[0, 4, 0], grid[4, 0, 0], grid[4, 4, 0], grid[2, 0, 0]] == [0, 1, 2, 255, 255]


def test_reconstructions_are_measured_on_held_out_images_and_the_best_checkpoint_is_kept(chain, tmp_path):
    config = chain.config("vae", validation=str(chain["test"]), validation_images=12)
    config["duration"] = {
        "images": 32,
        "checkpoint_every_images": 4,
        "visualise_every_images": 4,
        "keep_checkpoints": 1,
    }
    assert run_here("train-vae", tmp_path / "vae", config) == 0
    figures = {row["step"]: row for row in rows(tmp_path / "vae")}
    losses = {step: row["validation/reconstruction"] for step, row in figures.items()}
    assert sorted(losses) == list(range(1, 9))
    assert all(-10 < row["validation/psnr"] < 30 for row in figures.values())
    best = min(losses, key=lambda step: losses[step])
    kept = {path.name for path in (tmp_path / "vae/checkpoints").glob("step-*")}
    assert kept == {"step-00000008", f"step-{best:08d}"}
    assert (tmp_path / "vae/checkpoints/best").read_text() == f"step-{best:08d}"
    assert "fixed_images/reconstruction" in rows(chain["vae"])[0], "without a validation set it has another name"
