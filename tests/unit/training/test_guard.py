"""Losses and gradients that must not be stepped with: found, named, passed over if that is allowed."""

import json
import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from tiny_chain import signals_kept
from torch import nn

from hdtrain.config.base import Config
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import DurationConfig, EmaConfig, EngineConfig, GuardConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.distributed.world import World
from hdtrain.errors import TrainingError
from hdtrain.formats.checkpoint import find_latest, read_meta
from hdtrain.formats.run_dir import RunDir
from hdtrain.training.costs import Costs, Network
from hdtrain.training.engine import Engine
from hdtrain.training.guard import LEARNING_STEPS, Guard, Running, where_refused
from hdtrain.training.loop import Trainer
from hdtrain.training.task import Task

BATCH = 4
PLAN = BatchPlan(BATCH, BATCH, 1, 1)


class LineConfig(Config):
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()


@dataclass
class Batch:
    x: torch.Tensor
    factor: float
    keys: list[str]


@dataclass
class Line:
    """x and what its loss is multiplied with: 1, or something else at the steps of `odd`."""

    odd: dict[int, float] = field(default_factory=dict)

    def batch(self, positions: range) -> Batch:
        source = torch.Generator().manual_seed(positions.start)
        factor = self.odd.get(positions.start // BATCH + 1, 1.0)
        return Batch(torch.randn(len(positions), 3, generator=source), factor, [f"sample-{i}" for i in positions])


class LineTask(Task):
    """Learn the sum of three numbers. The gradient alone can be made odd as well."""

    def __init__(self, gradient_alone: bool = False) -> None:
        torch.manual_seed(0)
        self.net = Engine("line", nn.Linear(3, 1), OptimConfig(lr=0.01), PLAN, EngineConfig(), EmaConfig())
        self.engines, self.gradient_alone = {"line": self.net}, gradient_alone

    def micro_step(self, batch, draws, images_seen):
        noise = 0.5 * draws.normal("noise", (1,))
        error = (self.net(batch.x) - batch.x.sum(1, keepdim=True) - noise).square().mean()
        self.net.backward(batch.factor * error)
        return {"loss/line": error if self.gradient_alone else batch.factor * error, "figure": error}


def train(folder, odd=None, steps=80, gradient_alone=False, **guard) -> Trainer:
    """Train in this process, from where the folder's last checkpoint is."""
    init_process_group()
    task = LineTask(gradient_alone)
    duration = {"images": steps * BATCH, "checkpoint_every_images": 10 * BATCH, "keep_checkpoints": 100}
    config = LineConfig(duration=duration | {"log_every_steps": 1}, guard=guard)
    costs = Costs(
        (Network("line", nn.Linear(3, 1, device="meta"), (torch.empty(1, 3, device="meta"),), engine="line"),)
    )
    trainer = Trainer("train", task, Line(odd or {}), PLAN, config, World(), 0, RunDir(folder), costs)
    with signals_kept():
        trainer.train()
    return trainer


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(find_latest(folder / "checkpoints") / "line.weights.safetensors")


def test_a_loss_that_is_not_finite_stops_before_the_update_with_step_rank_values_and_keys(tmp_path):
    with pytest.raises(TrainingError) as error:
        train(tmp_path / "run", {24: math.nan})
    message = str(error.value)
    assert "loss is not finite at step 24 (rank 0: loss/line nan, figure " in message
    assert "keys of the batch: sample-92, sample-93, sample-94, sample-95)" in message
    saved = tmp_path / "run" / "checkpoints" / "step-00000020"
    assert f"last good checkpoint: {saved}" in message
    assert "guard.skip_batches=1" in message
    train(tmp_path / "twenty", steps=20)
    assert torch.equal(weights(tmp_path / "run")["weight"], weights(tmp_path / "twenty")["weight"])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_as_well(tmp_path, odd):
    with pytest.raises(TrainingError, match=r"gradient norm of line is not finite at step 3 .* checkpoint: none"):
        train(tmp_path, {3: odd}, gradient_alone=True)


@pytest.mark.parametrize("alone", [False, True])
def test_a_spike_is_found_once_enough_was_seen(tmp_path, alone):
    """Beyond 10 times the mean loss or 100 times the gradient's norm, and far beyond what they vary."""
    odd = {5: 20.0, 70: 5e3}
    with pytest.raises(TrainingError) as error:
        train(tmp_path, odd, gradient_alone=alone)
    what = "gradient norm of line is" if alone else "loss spike:"
    assert f"train: {what}" in str(error.value)
    assert "at step 70" in str(error.value)
    assert LEARNING_STEPS == 50
    assert train(tmp_path, odd, gradient_alone=alone, loss_factor=None, grad_norm_factor=None).step == 80


def test_bad_batches_are_passed_over_as_often_as_allowed(tmp_path, capsys):
    trainer = train(tmp_path / "run", {4: math.nan, 70: 1e6}, skip_batches=2)
    assert trainer.engines[0].steps == 78
    said = capsys.readouterr().err
    assert "loss is not finite at step 4 (rank 0" in said
    assert "passed over (1 of 2 that guard.skip_batches allows)" in said
    assert "loss spike" in said
    assert "passed over (2 of 2" in said
    logged = {row["step"]: row for row in rows(tmp_path / "run")}
    assert "skipped_batches" not in logged[3]
    assert (logged[4]["skipped_batches"], logged[80]["skipped_batches"]) == (1, 2)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
    with pytest.raises(TrainingError, match=r"at step 71 .* guard\.skip_batches=3 passes such batches over"):
        train(tmp_path / "more", {4: math.nan, 70: 1e6, 71: math.nan}, skip_batches=2)


def test_a_batch_that_was_passed_over_leaves_no_trace(tmp_path):
    """Weights, moments and averages after it are those before it."""
    train(tmp_path / "ten", steps=10)
    train(tmp_path / "eleven", {11: math.nan}, steps=11, skip_batches=1)
    ten, eleven = (find_latest(tmp_path / name / "checkpoints") for name in ("ten", "eleven"))
    assert (ten.name, eleven.name) == ("step-00000010", "step-00000011")
    assert {p.name: p.read_bytes() for p in ten.glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in eleven.glob("*.safetensors")
    }


def test_resuming_restores_count_and_running_figures(tmp_path):
    """A run that passed batches over before and after a stop ends as the one that was not stopped."""
    odd = {15: math.nan, 58: 1e6, 75: math.inf}
    train(tmp_path / "whole", odd, skip_batches=3)
    with pytest.raises(TrainingError, match="at step 58"):
        train(tmp_path / "cut", odd, skip_batches=1)
    meta = read_meta(find_latest(tmp_path / "cut" / "checkpoints"))
    assert (meta["step"], meta["guard"]["skipped"], meta["steps"]) == (50, 1, {"line": 49})
    train(tmp_path / "cut", odd, skip_batches=3)
    whole, cut = (tmp_path / name / "checkpoints" / "step-00000080" for name in ("whole", "cut"))
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (cut / path.name).read_bytes(), path.name
    assert read_meta(cut)["guard"] == read_meta(whole)["guard"]
    assert read_meta(whole)["guard"]["skipped"] == 3


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ([(0.5, 1.0), (math.nan, 1.0), (0.7, 1.0)], ["rank 1: "]),
        ([(0.5, math.nan), (math.inf, math.nan), (0.7, math.nan)], ["rank 1: "]),  # the second is a mean over ranks
        ([(0.5, math.nan), (0.6, 1.0), (0.7, math.inf)], ["rank 0: ", "rank 2: "]),
        ([(0.5, 1.0), (0.6, 9.0), (0.7, 1.0)], ["rank 2: "]),
    ],
)
def test_the_rank_is_named_where_it_began(losses, named):
    reports = [(i, dict(zip(("loss", "other"), values, strict=True)), [f"key-{i}"]) for i, values in enumerate(losses)]
    said = where_refused(reports)
    assert [part for part in ("rank 0: ", "rank 1: ", "rank 2: ") if part in said] == named
    for part in named:
        assert f"keys of the batch: key-{part[5]}" in said


def test_the_limit_follows_the_running_mean_and_the_spread():
    running = Running()
    for i in range(200):
        assert running.limit(10) == math.inf if i < LEARNING_STEPS else running.limit(10) < math.inf
        running.add(2.0 * (1.05 if i % 2 else 1 / 1.05))
    assert running.limit(10) == pytest.approx(20, rel=0.05)
    assert running.limit(None) == math.inf
    wide = Running()
    for i in range(200):
        wide.add(2.0 * (3.0 if i % 2 else 1 / 3.0))  # its logarithm varies by log 3
    assert wide.limit(10) == pytest.approx(2 * 3**6, rel=0.2)


def test_figures_without_a_logarithm_are_left_out():
    running = Running()
    for value in (0.0, -1.0, math.nan, math.inf):
        running.add(value)
    assert running.count == 0


def test_the_state_survives_json_exactly():
    guard = Guard(GuardConfig())
    for i in range(70):
        guard.saw(1 / (i + 3), {"net": math.sqrt(i + 1)})
    guard.may_skip()
    other = Guard(GuardConfig())
    other.load(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    assert (other.loss_limit(), other.grad_norm_limit("net")) == (guard.loss_limit(), guard.grad_norm_limit("net"))
