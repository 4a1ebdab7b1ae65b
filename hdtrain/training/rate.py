"""How many images a second a config would train on, by trying a few steps of its networks on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EngineConfig
from hdtrain.training.costs import Costs, Network, make_inputs, make_networks, training_pass
from hdtrain.training.memory import gib, memory_per_rank
from hdtrain.training.peak import device_peak_flops, emulates_bf16

TRIAL_SEC = 20.0
_MAX_PASSES = 6
_LIKELY_SHARE = 0.5
"""Of the peak; what a pass is expected to reach when it is decided how many images are tried."""
_WEIGHT_STD = 0.02


@dataclass(frozen=True)
class Rate:
    """Images a second of all ranks together, once every network takes part; and where the figure is from."""

    images_per_sec: float
    how: str


@dataclass(frozen=True)
class NotTried:
    """Why nothing was measured."""

    reason: str


def try_steps(
    costs: Costs, config: EngineConfig, plan: BatchPlan, device: torch.device, budget_sec: float = TRIAL_SEC
) -> Rate | NotTried:
    """Time passes of random images through all networks, forward and backward, and steps of plain fused AdamW.

    Without reading, losses, DeepSpeed's communication and `engine.compile`. On the CPU the ranks share the machine's
    cores, and the rate is all of theirs; with GPUs every rank has one, and they are taken to be equally fast.
    """
    if config.precision == "bf16" and emulates_bf16(device):
        return NotTried("this CPU only emulates bf16")
    flops, peak = costs.training_flops(), device_peak_flops(device, config.precision)
    likely_sec = flops / (_LIKELY_SHARE * peak)
    if 3 * likely_sec > budget_sec:
        return NotTried(
            f"an image is {flops / 1e9:,.0f} GF, and this {device.type.upper()} does {peak / 1e9:,.0f} GF/s at best: "
            f"too slow to try a few steps in {budget_sec:.0f} s"
        )
    num_images = max(1, min(plan.micro_batch_size, int(budget_sec / _MAX_PASSES / likely_sec)))
    alone = config.model_copy(update={"zero_stage": 0, "precision": "fp32"})
    needed, free = memory_per_rank(costs, alone, num_images, 1).total, _free_bytes(device)
    if needed > free:
        return NotTried(f"a few steps take {gib(needed)} GiB, and {gib(free)} GiB are free here")
    pass_sec, step_sec = _time(costs.networks, config, num_images, device, budget_sec)
    sec_a_step = plan.accumulation_steps * plan.micro_batch_size * pass_sec / num_images + step_sec
    images_a_step = plan.accumulation_steps * plan.micro_batch_size
    rate = images_a_step / sec_a_step * (plan.world_size if device.type == "cuda" else 1)
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"the CPU ({threads}), which all ranks share"
    )
    return Rate(rate, f"tried here: passes of {num_images} images on {where}")


def _time(
    networks: Sequence[Network], config: EngineConfig, num_images: int, device: torch.device, budget_sec: float
) -> tuple[float, float]:
    """Seconds of a pass over `num_images` images, and of the optimizers' step: medians of what the budget allows."""
    make = partial(_random, device)
    modules = make_networks(networks, make, config.precision, config.activation_checkpointing)
    inputs = make_inputs(networks, make, config.precision, num_images)
    if config.channels_last:
        modules = [module.to(memory_format=torch.channels_last) for module in modules]  # type: ignore[call-overload]
    weights = [p for n, m in zip(networks, modules, strict=True) if n.role == "trained" for p in m.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-9, fused=True)
    passes: list[float] = []
    steps: list[float] = []
    until = time.perf_counter() + budget_sec
    while len(passes) < 2 or (len(passes) <= _MAX_PASSES and time.perf_counter() + passes[-1] < until):
        passes.append(_seconds(device, lambda: training_pass(networks, modules, inputs)))
        steps.append(_seconds(device, optimizer.step))
        optimizer.zero_grad(set_to_none=True)
    return statistics.median(passes[1:]), statistics.median(steps[1:])  # the first pass is to warm up


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _random(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).mul_(_WEIGHT_STD).to(dtype)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
