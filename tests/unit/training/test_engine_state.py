"""Saved state: the same run goes on bit for bit, at another ZeRO stage as well, averages and statistics included."""

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.errors import CheckpointError, ConfigError
from hdtrain.models.ema import Exponential, PowerFunction, profiles
from hdtrain.training.engine import Engine

PLAN = BatchPlan(8, 8, 1, 1)
OPTIM = OptimConfig(lr=0.01, clip_grad_norm=0.3)
EMA = EmaConfig(decay=0.9)


def engine(zero_stage: int, precision: str = "fp32", width: int = 6, name: str = "net", ema: bool = True) -> Engine:
    init_process_group()
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(width) if precision == "fp32" else nn.LayerNorm(width)
    net = nn.Sequential(nn.Linear(4, width, bias=False), norm, nn.SiLU(), nn.Linear(width, 2))
    config = EngineConfig(zero_stage=zero_stage, precision=precision)
    return Engine(name, net, OPTIM, PLAN, config, EMA if ema else None)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=source) + 1, torch.randn(8, 2, generator=source)


def train(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        x, y = data(step)
        engine.backward((engine(x).float() - y).square().mean())
        assert engine.step(lr=0.01 / (step + 1))


def save(engine: Engine, folder) -> dict[str, torch.Tensor]:
    folder.mkdir()
    state = engine.state(is_main=True)
    for stem, tensors in state.items():
        save_file(tensors, folder / f"{stem}.safetensors")
    return {f"{stem} {name}": value for stem, tensors in state.items() for name, value in tensors.items()}


STAGES = [(saved, loaded, "fp32") for saved in range(4) for loaded in range(4)]


@pytest.mark.parametrize(("saved", "loaded", "precision"), [*STAGES, (1, 2, "bf16"), (2, 2, "bf16"), (3, 1, "bf16")])
def test_six_steps_are_three_saved_and_three_loaded(saved, loaded, precision, tmp_path):
    whole = engine(loaded, precision)
    train(whole, 0, 6)
    first = engine(saved, precision)
    train(first, 0, 3)
    folder = tmp_path / "checkpoint"
    before = save(first, folder)
    second = engine(loaded, precision)
    second.load(folder, first.steps)
    assert second.steps == 3
    after = save(second, tmp_path / "again")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before), "loading and saving changed something"
    train(second, 3, 6)
    got, expected = save(second, tmp_path / "got"), save(whole, tmp_path / "expected")
    assert any("running_mean" in name for name in got) == (precision == "fp32")
    assert sum(name.startswith("net.ema_std_0.10 ") for name in got) == sum(name.startswith("net.w") for name in got)
    loose = 1e-5 if precision == "fp32" else 5e-2
    torch.testing.assert_close(got, expected, rtol=0, atol=0 if saved == loaded else loose)


@pytest.mark.parametrize("zero_stage", range(4))
def test_weights_moments_and_averages_are_those_of_plain_torch(zero_stage, tmp_path):
    net = engine(zero_stage)
    plain = engine(0, ema=False).module
    plain.load_state_dict(net.replica().state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=0.01)
    averages = {name: [p.detach().clone() for p in plain.parameters()] for name in profiles(0.9, post_hoc=True)}
    for step in range(5):
        train(net, step, step + 1)
        x, y = data(step)
        (plain(x) - y).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), OPTIM.clip_grad_norm)
        assert net.grad_norm == pytest.approx(float(norm), rel=1e-5)
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
        for name, profile in profiles(0.9, post_hoc=True).items():
            beta = profile.beta(step + 1)
            averages[name] = [
                beta * a + (1 - beta) * p.detach()
                for a, p in zip(averages[name], list(plain.parameters()), strict=True)
            ]
    got = save(net, tmp_path / "state")
    for (name, p), *means in zip(plain.named_parameters(), *averages.values(), strict=True):
        torch.testing.assert_close(got[f"net.weights {name}"], p.detach(), rtol=0, atol=2e-6)
        torch.testing.assert_close(got[f"net.exp_avg {name}"], optimizer.state[p]["exp_avg"], rtol=1e-4, atol=1e-7)
        for average, mean in zip(averages, means, strict=True):
            torch.testing.assert_close(got[f"net.{average} {name}"], mean, rtol=0, atol=2e-6)
            assert torch.equal(net.replica(average).get_parameter(name), got[f"net.{average} {name}"])


def test_the_first_update_of_a_power_function_average_forgets_where_it_began():
    assert PowerFunction(0.05).beta(1) == 0
    assert PowerFunction(0.05).gamma == pytest.approx(16.97, abs=0.01)  # Karras et al. 2024, table of EDM2
    assert PowerFunction(0.10).gamma == pytest.approx(6.94, abs=0.01)
    assert [Exponential(0.5).beta(n) for n in (1, 9, 100)] == [0.1, 0.5, 0.5]


@pytest.mark.parametrize("zero_stage", range(4))
@pytest.mark.parametrize("cause", ["limit", "nan"])
def test_a_refused_update_changes_nothing(zero_stage, cause, tmp_path):
    net = engine(zero_stage)
    train(net, 0, 2)
    before = save(net, tmp_path / "before")
    x, y = data(2)
    loss = (net(x) - y).square().mean()
    net.backward(loss * math.nan if cause == "nan" else loss)
    assert net.step(0.01, max_grad_norm=math.inf if cause == "nan" else 1e-6) is False
    assert net.steps == 2
    after = save(net, tmp_path / "after")
    trained = [name for name in before if "buffers" not in name]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    assert math.isfinite(net.grad_norm) == (cause == "limit")
    other = engine(zero_stage)
    train(other, 0, 2)
    other(x)  # its running statistics saw that batch too
    train(net, 3, 4)
    train(other, 3, 4)
    got, expected = save(net, tmp_path / "got"), save(other, tmp_path / "expected")
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_step_without_gradients_is_none():
    assert engine(1).step(0.01) is None


@pytest.mark.parametrize("zero_stage", range(4))
def test_an_engine_that_never_stepped_can_be_saved_and_loaded(zero_stage, tmp_path):
    first = engine(1)
    save(first, tmp_path / "checkpoint")
    second = engine(zero_stage)
    second.load(tmp_path / "checkpoint", 0)
    train(first, 0, 2)
    train(second, 0, 2)
    torch.testing.assert_close(save(second, tmp_path / "b"), save(first, tmp_path / "a"), rtol=1e-5, atol=1e-7)


def test_weights_of_another_model_are_refused_with_the_first_differences(tmp_path):
    save(engine(1), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"weights of 'net' do not fit the model, first: .*0\.weight"):
        engine(1, width=7).load(tmp_path / "checkpoint", 0)


def test_averages_that_were_not_kept_cannot_be_loaded(tmp_path):
    save(engine(1, ema=False), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"holds no net\.ema\.safetensors: .* other settings of `ema`"):
        engine(1).load(tmp_path / "checkpoint", 0)


def test_bf16_with_batch_normalisation_or_without_zero_is_refused():
    with pytest.raises(ValidationError, match="bf16 needs zero_stage 1, 2 or 3"):
        EngineConfig(precision="bf16", zero_stage=0)
    config = EngineConfig(precision="bf16")
    with pytest.raises(ConfigError, match=r"batch normalisation of 'net'; set engine\.precision=fp32"):
        Engine("net", nn.BatchNorm1d(3), OptimConfig(lr=0.01), PLAN, config)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_keeps_fp32_masters_which_are_what_remains_at_the_end(zero_stage, tmp_path):
    net = engine(zero_stage, "bf16")
    train(net, 0, 3)
    masters = dict(net.gathered())
    assert all(value.dtype == torch.float32 for value in masters.values())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in masters.values())
    save(net, tmp_path / "state")
    saved = load_file(tmp_path / "state" / "net.weights.safetensors")
    for name, p in net.replica().named_parameters():
        assert torch.equal(p, masters[name])
        assert torch.equal(p, saved[name])
