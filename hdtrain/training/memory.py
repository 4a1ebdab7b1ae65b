"""What a rank must hold, by ZeRO stage, and what to change when it does not fit.

The terms follow DeepSpeed's stage_1_and_2.py, stage3.py and bf16_optimizer.py (0.19) and were checked against the
tensors that a step of the engine really holds. Activations come from `Costs`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EngineConfig
from hdtrain.training.costs import Costs

GIB = 2**30
USABLE = 0.92
"""Share of a device's memory that tensors can have: the rest goes to the CUDA context, NCCL and fragmentation."""
BUCKET_ELEMENTS = 50_000_000
"""Gradients are reduced in buckets of so many elements. DeepSpeed's 500 million take 2 GB in fp32, filled or not."""
LIVE_ELEMENTS = 100_000_000
"""Weights that stage 3 keeps gathered. DeepSpeed's own limit of a billion would keep all of ours."""


def zero_settings(stage: int, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` for a module of so many parameters; this module counts with the same."""
    bucket = min(num_parameters + num_parameters % 2, BUCKET_ELEMENTS)  # DeepSpeed wants it even
    settings: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        live = min(num_parameters, LIVE_ELEMENTS)
        settings |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
        settings |= {"stage3_prefetch_bucket_size": bucket // 2}
    return settings


@dataclass(frozen=True)
class Memory:
    """Bytes a rank holds at its peak."""

    weights: int
    """As the module has them, the frozen networks' included."""
    gradients: int
    """And the buffers in which they are reduced and weights are gathered."""
    optimizer: int
    """fp32 masters, moments and moving averages."""
    activations: int
    """Or the full fp32 copy with which pictures are made between steps, where that is more."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer and averages": self.optimizer,
            "activations": self.activations,
        }
        return ", ".join(f"{name} {gib(value)}" for name, value in parts.items())


def memory_per_rank(costs: Costs, config: EngineConfig, micro_batch_size: int, world_size: int) -> Memory:
    """What one of `world_size` ranks holds at its peak, with `micro_batch_size` images a pass."""
    weights, gradients, optimizer = costs.frozen_bytes, 0, 0
    for number, num_parameters in enumerate(costs.trained.values()):
        of_engine = _engine(num_parameters, 0 if number else costs.num_averages, config, world_size)
        weights, gradients, optimizer = weights + of_engine[0], gradients + of_engine[1], optimizer + of_engine[2]
    activations = costs.activation_bytes(config.precision, config.activation_checkpointing, micro_batch_size)
    replica = 4 * max(costs.trained.values())
    return Memory(weights, gradients, optimizer, max(activations, replica))


def _engine(n: int, averages: int, config: EngineConfig, world_size: int) -> tuple[int, int, int]:
    """Bytes of weights, gradients with buffers, and optimizer state of one engine with `n` parameters."""
    stage, size = config.zero_stage, 2 if config.precision == "bf16" else 4
    part = -(-n // world_size)
    state = 4 * (2 + averages)  # AdamW's two moments
    if stage == 0:
        return size * n, 4 * n + 4 * n, state * n  # gradients, and once more in the buffer that is reduced
    optimizer = (state + 4) * part  # DeepSpeed keeps masters of its own, in fp32 too
    bucket = zero_settings(stage, n)["reduce_bucket_size"]
    if stage == 3:
        gathered = 2 * size * min(n, zero_settings(3, n)["stage3_max_live_parameters"]) if world_size > 1 else 0
        return size * part, 4 * part + size * bucket + max(gathered, 4 * part + size * bucket), optimizer
    if stage == 2:
        own = 4 * part if config.precision == "bf16" else 8 * part
        return size * n, own + (size + 4) * bucket, optimizer
    if config.precision == "bf16":  # bf16_optimizer.py: whole gradients in fp32, those of the pass, and their reduction
        return size * n, 8 * n, optimizer
    return size * n, 4 * n + 4 * (part + bucket), optimizer


def device_bytes(device: torch.device, ranks_here: int = 1) -> int:
    """Memory of a rank's device: all of its GPU's, or its share of this machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_here


def fits(memory: Memory, device_bytes: int) -> bool:
    """Whether tensors of so many bytes fit in a device's memory."""
    return memory.total <= USABLE * device_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised `error` for want of memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def out_of_memory_advice(costs: Costs, plan: BatchPlan, config: EngineConfig, device_bytes: int) -> str:
    """What a rank needs by this model, and which settings that are not set would make it fit.

    Args:
        costs: of the config that ran out of memory.
        plan: its batch.
        config: its engine.
        device_bytes: of a rank's device (`device_bytes`).

    Returns:
        One sentence or two, beginning with a verb: `needs about 92 GiB a rank (…); fits in 79 GiB with …`.
    """
    now = memory_per_rank(costs, config, plan.micro_batch_size, plan.world_size)
    images = f"{plan.micro_batch_size} image{'s' if plan.micro_batch_size > 1 else ''}"
    text = f"needs about {gib(now.total)} GiB a rank ({now} for {images})"
    limit, fitting = USABLE * device_bytes, f"fits in {gib(device_bytes)} GiB"
    if now.total <= limit:  # yet it did not fit
        text += f", which should fit in {gib(device_bytes)} GiB, so something else may hold memory there"
        limit, fitting = 0.8 * now.total, "takes much less"
    found = [(change, memory) for change, memory in _changes(costs, plan, config, limit) if memory.total <= limit]
    if found:
        return f"{text}; {fitting} with " + ", or ".join(
            f"{change} ({gib(memory.total)} GiB)" for change, memory in found
        )
    change, least = _least(costs, plan, config)
    if least.total >= now.total:
        return f"{text}; no setting makes it smaller: take more ranks, a smaller preset or another device"
    if least.total <= limit:
        return f"{text}; {fitting} with all of {change} ({gib(least.total)} GiB)"
    return f"{text}; even {change} ({gib(least.total)} GiB) is not enough: take more ranks or a smaller preset besides"


def _changes(costs: Costs, plan: BatchPlan, config: EngineConfig, limit: float) -> Iterator[tuple[str, Memory]]:
    """Settings that are not set and what a rank would hold with each, those that cost least first."""
    for micro in smaller_micro_batches(plan):
        memory = memory_per_rank(costs, config, micro, plan.world_size)
        if memory.total <= limit:
            yield f"batch.micro_batch_size={micro}", memory
            break
    for key, value in _settings(costs, config):
        changed = config.model_copy(update={key: value})
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f"engine.{key}={text}", memory_per_rank(costs, changed, plan.micro_batch_size, plan.world_size)


def _settings(costs: Costs, config: EngineConfig) -> list[tuple[str, Any]]:
    settings: list[tuple[str, Any]] = []
    if not config.activation_checkpointing:
        settings.append(("activation_checkpointing", True))
    settings += [("zero_stage", stage) for stage in range(config.zero_stage + 1, 4)]
    if config.precision == "fp32" and config.zero_stage > 0 and not costs.normalises_batches:
        settings.append(("precision", "bf16"))
    return settings


def _least(costs: Costs, plan: BatchPlan, config: EngineConfig) -> tuple[str, Memory]:
    """The settings that bring a rank's memory down as far as it goes without changing what is computed."""
    micro = min(smaller_micro_batches(plan), default=plan.micro_batch_size)
    changes = [f"batch.micro_batch_size={micro}"] if micro < plan.micro_batch_size else []
    best = memory_per_rank(costs, config, micro, plan.world_size)
    for key, value in _settings(costs, config):
        changed = config.model_copy(update={key: value})
        memory = memory_per_rank(costs, changed, micro, plan.world_size)
        if key != "precision" and memory.total < best.total:
            changes = [text for text in changes if not text.startswith(f"engine.{key}=")]
            changes.append(f"engine.{key}={str(value).lower()}")
            config, best = changed, memory
    return ", ".join(changes), best


def smaller_micro_batches(plan: BatchPlan) -> list[int]:
    """Micro batch sizes below the plan's that divide its global batch, largest first."""
    a_rank = plan.global_batch_size // plan.world_size
    return [m for m in range(plan.micro_batch_size - 1, 0, -1) if a_rank % m == 0]


def gib(value: float) -> str:
    """Bytes as GiB with two digits that count: `0.048`, `0.48`, `5.1`, `92`."""
    size = value / GIB
    decimals = next((n for n, least in enumerate((9.95, 0.995, 0.0995)) if size >= least), 3)
    return f"{size:,.{decimals}f}"
