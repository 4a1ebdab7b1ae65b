"""What a rank holds: predicted against the tensors of real steps; and what to change when it is too much."""

import gc

import pytest
import torch
from torch import nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.models.denoiser import build_denoiser
from hdtrain.training.costs import Costs, LiveBytes, Network
from hdtrain.training.engine import Engine
from hdtrain.training.memory import (
    GIB,
    USABLE,
    gib,
    is_out_of_memory,
    memory_per_rank,
    out_of_memory_advice,
    smaller_micro_batches,
)

WIDTH, LAYERS, IMAGES = 256, 12, 4
MIB = 2**20
ACTIVATIONS = {
    ("fp32", False): (0, 407 * MIB),
    ("fp32", True): (2 * MIB, 132 * MIB),
    ("bf16", False): (0, 204 * MIB),
    ("bf16", True): (MIB, 66 * MIB),
}
"""Of `ldm4`, fixed and an image, as `Costs` measures them in half a minute."""


def mlp() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


@pytest.fixture(scope="module")
def ldm4() -> Costs:
    with torch.device("meta"):
        inputs = torch.empty(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64)
        network = Network("denoiser", build_denoiser("ldm4", 3, 64), inputs, engine="denoiser")
    return Costs((network,), 3, (), ACTIVATIONS)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_a_step_of_the_engine_holds_what_was_predicted(zero_stage, precision, accumulation):
    init_process_group()
    config = EngineConfig(zero_stage=zero_stage, precision=precision)
    with torch.device("meta"):
        costs = Costs((Network("net", mlp(), (torch.empty(1, WIDTH),), engine="net"),), 3)
    with LiveBytes() as live:
        plan = BatchPlan(IMAGES * accumulation, IMAGES, accumulation, 1)
        engine = Engine("net", mlp(), OptimConfig(lr=1e-3), plan, config, EmaConfig())
        gc.collect()
        live.peak = live.live  # the making of the engine apart
        for _ in range(2 * accumulation):
            engine.backward(engine(torch.ones(IMAGES, WIDTH)).float().square().mean())
            engine.step(1e-3)
    predicted = memory_per_rank(costs, config, IMAGES, 1)
    without_pictures = predicted.total - predicted.activations
    assert 0.98 < without_pictures / live.peak < 1.3


def test_partitioning_divides_the_optimizer_and_then_gradients_and_weights(ldm4):
    held = {
        stage: memory_per_rank(ldm4, EngineConfig(zero_stage=stage, precision="bf16"), 8, 64) for stage in (1, 2, 3)
    }
    assert held[1].optimizer == held[3].optimizer == pytest.approx(4 * 6 * 274_056_163 / 64, rel=1e-6)
    assert held[2].gradients < held[1].gradients / 3
    assert held[3].weights < held[2].weights / 60
    assert held[1].activations == held[3].activations


def advice(costs: Costs, micro: int, ranks: int, gib_there: float, **engine) -> str:
    plan = BatchPlan(micro * ranks, micro, 1, ranks)
    return out_of_memory_advice(costs, plan, EngineConfig(**engine), int(gib_there * GIB))


def needed(text: str) -> float:
    return float(text.split("(")[-1].split(" GiB")[0])


def test_the_advice_names_settings_that_fit_and_what_they_need(ldm4):
    text = advice(ldm4, 256, 8, 79)
    now = memory_per_rank(ldm4, EngineConfig(), 256, 8)
    assert text.startswith(f"needs about {gib(now.total)} GiB a rank (weights 1.0, gradients")
    assert "for 256 images); fits in 79 GiB with batch.micro_batch_size=128 (" in text
    for change in text.split(" with ")[1].split(", or "):
        assert needed(change) <= USABLE * 79
    assert "engine.activation_checkpointing=true" in text
    assert "zero_stage" not in text  # activations are the trouble; no stage helps


def test_the_advice_leaves_out_what_is_set_already_and_what_cannot_be_set(ldm4):
    text = advice(ldm4, 512, 8, 60, activation_checkpointing=True, precision="fp32", zero_stage=0)
    assert "activation_checkpointing" not in text
    assert "bf16" not in text  # needs another stage
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3))
        normalised = Costs((Network("net", module, (torch.empty(1, 3, 512, 512),), engine="net"),))
    assert "batch.micro_batch_size" in advice(normalised, 64, 1, 4)
    assert "bf16" not in advice(normalised, 64, 1, 4)


def test_a_higher_zero_stage_is_advised_where_states_are_the_trouble(ldm4):
    text = advice(ldm4, 1, 8, 9, zero_stage=0)
    assert "engine.zero_stage=1 (" in text
    assert "micro_batch_size=" not in text


def test_where_nothing_is_enough_the_advice_says_so(ldm4):
    text = advice(ldm4, 8, 1, 4)
    assert "is not enough: take more ranks or a smaller preset besides" in text
    assert "even batch.micro_batch_size=1" in text


def test_a_job_that_should_have_fitted_is_told_so_and_how_to_take_less(ldm4):
    text = advice(ldm4, 64, 8, 200)
    assert "should fit in 200 GiB, so something else may hold memory there; takes much less with" in text


def test_micro_batches_that_divide_the_global_batch_are_offered_largest_first():
    assert smaller_micro_batches(BatchPlan(96, 24, 2, 2)) == [16, 12, 8, 6, 4, 3, 2, 1]


def test_torchs_ways_of_saying_that_memory_is_out_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(MemoryError())
