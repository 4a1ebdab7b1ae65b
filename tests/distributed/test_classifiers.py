"""Classifiers on one rank and on two: dropout, validation, the choice of weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hdtrain.formats.manifest import read_manifest

DURATION = {"images": 24, "log_every_steps": 1, "keep_checkpoints": 1}


@pytest.fixture(scope="module")
def held_out(chain, tmp_path_factory):
    return chain.make("test", tmp_path_factory.mktemp("held") / "out", split="validation")


def relative_difference(run, other) -> float:
    ours, theirs = (load_file(path / "model/seed-0.safetensors") for path in (run, other))
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(theirs[name] - ours[name]).square().sum() for name in ours]).sum().sqrt()
    return float(difference / torch.stack([value.square().sum() for value in ours.values()]).sum().sqrt())


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "seed-0/metrics.jsonl").read_text().splitlines()]


def with_dropout(chain, rate: float) -> dict:
    return {**chain.configs["phi"][1]["model"], "dropout": rate}


def test_dropout_falls_on_the_same_features_on_any_number_of_ranks(chain, ranks, tmp_path):
    # With plain SGD-like steps rounding errors stay what they are: AdamW's eps far above the gradients.
    changes = {
        "optim": {"lr": 1e-2, "eps": 1.0},
        "duration": {"images": 8},
        "engine": {"activation_checkpointing": True},
    }
    config = chain.config("phi", model=with_dropout(chain, 0.5), **changes)
    one, two = (ranks.run("train-classifier", tmp_path / str(size), config, size) for size in (1, 2))
    assert relative_difference(one, two) < 1e-6
    plain = ranks.run("train-classifier", tmp_path / "0", {**config, "model": with_dropout(chain, 0.0)}, 1)
    assert relative_difference(one, plain) > 1e-5, "dropout changed nothing"
    assert read_manifest(one).info["architecture"]["dropout"] == 0.5


def test_the_figures_on_a_validation_set_do_not_depend_on_the_ranks(chain, ranks, held_out, tmp_path):
    changes = {
        "optim": {"lr": 1e-30, "weight_decay": 0.0},
        "validation": str(held_out),
        "validate_every_images": 8,
        "duration": DURATION,
    }
    config = chain.config("phi", **changes)
    one, two = (ranks.run("train-classifier", tmp_path / str(size), config, size) for size in (1, 2))
    figures = [{k: v for k, v in rows(run)[-1].items() if k.startswith("validation/")} for run in (one, two)]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 3
    one, two = (read_manifest(run).info for run in (one, two))
    assert one["temperature"] == two["temperature"]
    assert one["calibration"] == two["calibration"]


@pytest.mark.slow
def test_two_ranks_stop_early_together_and_choose_what_one_chooses(chain, ranks, held_out, tmp_path):
    changes = {
        "optim": {"lr": 1e-30},
        "validation": str(held_out),
        "choose": "best",
        "patience_images": 8,
        "validate_every_images": 8,
    }
    config = chain.config("phi", duration={**DURATION, "images": 80}, **changes)
    for size in (1, 2):
        run = ranks.run("train-classifier", tmp_path / str(size), config, size)
        info = read_manifest(run).info
        # nothing is learned, so the first validation is the best one: steps 1, 2, 4
        assert (info["chosen_step"], info["steps"], info["stopped_early"]) == ({"0": 1}, 4, {"0": True})
        kept = {path.name for path in (run / "seed-0/checkpoints").glob("step-*")}
        assert kept == {"step-00000001", "step-00000004"}
        assert ranks.said().count("stopped early after step 4") == 1
