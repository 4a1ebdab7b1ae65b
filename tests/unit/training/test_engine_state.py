"""Saved state: the same run goes on bit for bit, at another ZeRO stage as well, running statistics included."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import EngineConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.errors import CheckpointError, ConfigError
from hdtrain.training.engine import Engine

PLAN = BatchPlan(8, 8, 1, 1)


def engine(zero_stage: int, precision: str = "fp32", width: int = 6, name: str = "net") -> Engine:
    init_process_group()
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(width) if precision == "fp32" else nn.LayerNorm(width)
    net = nn.Sequential(nn.Linear(4, width, bias=False), norm, nn.SiLU(), nn.Linear(width, 2))
    config = EngineConfig(zero_stage=zero_stage, precision=precision)
    return Engine(name, net, OptimConfig(lr=0.01, clip_grad_norm=0.3), PLAN, config)


def train(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        source = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 4, generator=source) + 1, torch.randn(8, 2, generator=source)
        engine.backward_and_step((engine(x).float() - y).square().mean(), lr=0.01 / (step + 1))


def state(engine: Engine, folder) -> dict[str, torch.Tensor]:
    folder.mkdir()
    engine.save(folder, is_main=True)
    return {
        f"{path.stem} {name}": value for path in sorted(folder.iterdir()) for name, value in load_file(path).items()
    }


STAGES = [(saved, loaded, "fp32") for saved in range(3) for loaded in range(3)]


@pytest.mark.parametrize(("saved", "loaded", "precision"), [*STAGES, (1, 2, "bf16"), (2, 2, "bf16")])
def test_six_steps_are_three_saved_and_three_loaded(saved, loaded, precision, tmp_path):
    whole = engine(loaded, precision)
    train(whole, 0, 6)
    first = engine(saved, precision)
    train(first, 0, 3)
    folder = tmp_path / "checkpoint"
    before = state(first, folder)
    second = engine(loaded, precision)
    second.load(folder)
    assert second.steps == 3
    after = state(second, tmp_path / "again")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before), "loading and saving changed something"
    train(second, 3, 6)
    got, expected = state(second, tmp_path / "got"), state(whole, tmp_path / "expected")
    assert any("running_mean" in name for name in got) == (precision == "fp32")
    loose = 1e-5 if precision == "fp32" else 5e-2
    torch.testing.assert_close(got, expected, rtol=0, atol=0 if saved == loaded else loose)


def test_an_engine_that_never_stepped_can_be_saved_and_loaded(tmp_path):
    first = engine(1)
    before = state(first, tmp_path / "checkpoint")
    assert not any("exp_avg" in name for name in before)
    second = engine(2)
    second.load(tmp_path / "checkpoint")
    assert second.steps == 0
    train(first, 0, 2)
    train(second, 0, 2)
    torch.testing.assert_close(state(second, tmp_path / "b"), state(first, tmp_path / "a"), rtol=1e-5, atol=1e-7)


def test_weights_of_another_model_are_refused_with_the_first_differences(tmp_path):
    state(engine(1), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"weights of 'net' do not fit the model, first: .*0\.weight"):
        engine(1, width=7).load(tmp_path / "checkpoint")


def test_bf16_with_batch_normalisation_or_without_zero_is_refused():
    with pytest.raises(ValidationError, match="bf16 needs zero_stage 1 or 2"):
        EngineConfig(precision="bf16", zero_stage=0)
    config = EngineConfig(precision="bf16")
    with pytest.raises(ConfigError, match=r"batch normalisation of 'net'; set engine\.precision=fp32"):
        Engine("net", nn.BatchNorm1d(3), OptimConfig(lr=0.01), PLAN, config)


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_bf16_keeps_fp32_masters_which_are_what_remains_at_the_end(zero_stage, tmp_path):
    net = engine(zero_stage, "bf16")
    train(net, 0, 3)
    masters = {name: value.clone() for name, value in net.master_weights().items()}
    assert all(value.dtype == torch.float32 for value in masters.values())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in masters.values())
    net.finish()
    for name, p in net.module.named_parameters():
        assert torch.equal(p, masters[name])
