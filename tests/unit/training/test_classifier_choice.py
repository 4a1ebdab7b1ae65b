"""Which weights of a classifier are published, and when its training stops."""

import json
import shutil

import pytest
import torch
import yaml
from classifier_helpers import column, rows, validated
from safetensors.torch import load_file
from tiny_chain import run_here

from hdtrain.formats.manifest import read_manifest
from hdtrain.training.choice import Choice

STEPS = 8
UNSTABLE = {
    "optim": {"lr": 0.05, "warmup_images": 4 * STEPS, "clip_grad_norm": 0.0},
    "guard": {"loss_factor": None, "grad_norm_factor": None},
}
"""The learning rate rises until it is far too high, so the lowest loss comes early and is left again."""


def weights(run):
    return load_file(run / "model/seed-0.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def make(chain, held_out):
    """Train a small vision transformer with a validation set: `make(directory, choose="best")`."""

    def run(directory, **changes):
        reader = {"resolution": 32, "threads": 1}
        model = {"kind": "timm", "name": "test_vit", "images": [str(chain["labelled"])], "reader": reader}
        changes = {**validated(STEPS), "validation": str(held_out), **UNSTABLE, **changes}
        return chain.make("phi", directory, model=model, **changes)

    return run


@pytest.fixture(scope="module")
def best(make, tmp_path_factory):
    """With the weights of its lowest validation loss; every checkpoint is kept."""
    return make(tmp_path_factory.mktemp("best") / "run", choose="best")


def test_the_weights_with_the_lowest_validation_loss_are_published(make, best, tmp_path):
    losses = column(best, "validation/loss")
    assert sorted(losses) == list(range(1, STEPS + 1))
    step = min(losses, key=lambda step: losses[step])
    info = read_manifest(best).info
    assert step < STEPS, "choose another learning rate: nothing is tested where the last is the best"
    assert (info["chosen_step"], info["steps"], info["stopped_early"]) == ({"0": step}, STEPS, {"0": False})
    assert info["validation"]["0"]["loss"] == pytest.approx(losses[step], abs=1e-12)
    assert same(weights(best), load_file(best / f"seed-0/checkpoints/step-{step:08d}/classifier.weights.safetensors"))
    other = make(tmp_path / "last")
    assert not same(weights(best), weights(other))
    assert read_manifest(other).info["chosen_step"] == {"0": STEPS}


def test_the_chosen_checkpoint_stays_although_others_go(make, best, tmp_path):
    few = validated(STEPS, keep_checkpoints=1, keep_best=0, checkpoint_every_images=4)
    run = make(tmp_path / "run", choose="best", **few)
    chosen = read_manifest(best).info["chosen_step"]["0"]
    kept = {path.name for path in (run / "seed-0/checkpoints").glob("step-*")}
    assert kept == {f"step-{chosen:08d}", f"step-{STEPS:08d}"}
    assert same(weights(run), weights(best))


def test_a_run_that_goes_on_from_the_middle_chooses_the_same_weights(best, tmp_path):
    chosen = read_manifest(best).info["chosen_step"]["0"]
    for name, resumed in (("after", chosen + 2), ("before", chosen - 1)):
        cut = tmp_path / name
        shutil.copytree(best, cut)
        (cut / "manifest.json").unlink()
        (cut / "model/seed-0.safetensors").unlink()
        kept = {step for step in range(1, STEPS + 1) if step <= resumed}
        if name == "after":
            kept &= {chosen, *range(resumed - 1, STEPS)}  # as they are pruned
        for path in (cut / "seed-0/checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) not in kept:
                shutil.rmtree(path)
        assert run_here("train-classifier", cut, read_config(best)) == 0
        assert (cut / "model/seed-0.safetensors").read_bytes() == (best / "model/seed-0.safetensors").read_bytes()
        assert read_manifest(cut).identity == read_manifest(best).identity
        assert column(cut, "validation/loss") == column(best, "validation/loss")


def read_config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def test_training_stops_when_the_validation_loss_has_not_fallen_for_long(make, best, tmp_path, capsys):
    losses = column(best, "validation/loss")
    lowest = {step: min(range(1, step + 1), key=lambda earlier: losses[earlier]) for step in losses}
    first = next(step for step in losses if step - lowest[step] >= 3)
    assert first < STEPS
    run = make(tmp_path / "run", choose="best", patience_images=12)
    info = read_manifest(run).info
    assert rows(run)[-1]["step"] == info["steps"] == info["seed_steps"]["0"] == first
    assert info["stopped_early"] == {"0": True}
    assert f"stopped early after step {first}: the lowest validation loss is that of step" in capsys.readouterr().err
    assert info["chosen_step"] == {"0": lowest[first]}

    # killed between the last step and publishing
    before = (run / "seed-0/metrics.jsonl").read_bytes()
    published = (run / "manifest.json").read_bytes(), (run / "model/seed-0.safetensors").read_bytes()
    (run / "manifest.json").unlink()
    (run / "model/seed-0.safetensors").unlink()
    assert run_here("train-classifier", run, read_config(run)) == 0
    assert ((run / "manifest.json").read_bytes(), (run / "model/seed-0.safetensors").read_bytes()) == published
    assert (run / "seed-0/metrics.jsonl").read_bytes() == before, "no step was made again"


def test_patience_counts_images_since_the_last_improvement_and_nan_is_none():
    choice = Choice(keeps_best=True, patience_images=100)
    seen = [(1, 1.0), (5, float("nan")), (10, 0.5), (15, 0.5), (19, 0.6)]
    assert [choice.saw(loss, step, 10 * step) for step, loss in seen] == [True, False, True, False, False]
    assert not choice.ended
    again = Choice(keeps_best=True, patience_images=100)
    again.load(json.loads(json.dumps(choice.state())))
    for one in (choice, again):
        assert not one.saw(0.7, 20, 200)
        assert (one.ended, one.steps_made(50), one.chosen_step(50)) == (True, 20, 10)
    assert Choice(patience_images=100).chosen_step(50) == 50
