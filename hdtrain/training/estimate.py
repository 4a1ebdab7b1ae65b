"""What `--dry-run` says of a training before it is run: size, work, memory, disk and time."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hdtrain.config.adaptation import TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig, DurationConfig, EngineConfig, OptimConfig
from hdtrain.config.training import TrainLdmConfig
from hdtrain.training.costs import Costs
from hdtrain.training.lr import lr_factor
from hdtrain.training.memory import Memory, device_bytes, fits, gib, memory_per_rank, out_of_memory_advice
from hdtrain.training.peak import ANCHOR, DATASHEET
from hdtrain.training.rate import NotTried, Rate

_ANCHORED_FLOPS = 30e9
"""Networks that train on an image in fewer leave a large GPU waiting for launches; no published share is theirs."""
_BYTES = 4
"""Of an element in a checkpoint, a snapshot and a published model."""


class TrainingConfig(Protocol):
    """The parts that every training config has."""

    @property
    def batch(self) -> BatchConfig:
        """Sizes of a batch."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """Learning rate and warm-up."""
        ...

    @property
    def duration(self) -> DurationConfig:
        """Images to see, checkpoints to keep."""
        ...

    @property
    def engine(self) -> EngineConfig:
        """How a step is computed."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A training that has not been run."""

    config: TrainingConfig
    plan: BatchPlan
    costs: Costs
    directory: Path
    device: torch.device
    rate: Rate | NotTried
    images_seen: int = 0
    """By an earlier attempt, up to its last checkpoint."""

    @property
    def num_seeds(self) -> int:
        """How many trainings the stage makes, one after the other."""
        return len(self.config.seeds) if isinstance(self.config, TrainClassifierConfig) else 1

    @property
    def images(self) -> int:
        """Of one training, whole steps."""
        return self.plan.num_steps(self.config.duration.images) * self.plan.global_batch_size

    def __str__(self) -> str:
        return "\n\n".join([self._networks(), self._plan(), self._memory(), self._disk(), self._time()])

    def _networks(self) -> str:
        rows = [("network", "parameters", "forward", "training", "")]
        for network in self.costs.networks:
            later = f"from {network.from_images:,} images on" if network.from_images else ""
            note = later if network.engine else "frozen"
            size = f"{network.num_parameters:,}"
            rows.append((network.name, size, giga(network.forward_flops), giga(network.training_flops), note))
        if len(rows) > 2:
            trained, flops = f"{sum(self.costs.trained.values()):,}", giga(self.costs.training_flops())
            rows.append(("trained, all", trained, "", flops, ""))
        return f"an image in GFLOP, 2 FLOPs a multiply-add\n{table(rows)}"

    def _plan(self) -> str:
        plan, optim = self.plan, self.config.optim
        steps, warmup = plan.num_steps(self.config.duration.images), plan.num_steps(optim.warmup_images)
        cut = f"{plan.micro_batch_size} × {plan.accumulation_steps} × {plan.world_size}"
        seeds = f", for each of {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        lr = f"{optim.lr * lr_factor(optim, plan.global_batch_size):.3g}, {optim.schedule}"
        if warmup:
            lr += f", after {warmup:,} steps of warm-up ({optim.warmup_images:,} images)"
        longer = ": LONGER than the run" if warmup > steps else ""
        rows = [
            ("global batch", f"{plan.global_batch_size} = {cut} (micro batch × passes × ranks)"),
            ("steps", f"{steps:,} ({self.images:,} images){seeds}"),
            ("learning rate", lr + longer),
        ]
        return table(rows)

    def _memory(self) -> str:
        engine, plan = self.config.engine, self.plan
        cut = f"{count(plan.world_size, 'rank')}, {count(plan.micro_batch_size, 'image')} a pass, {engine.precision}"
        heading = f"memory of a rank in GiB: {cut}"
        rows: list[tuple[str, ...]] = [
            ("zero_stage", "weights", "gradients", "optimizer, averages", "activations", "together", "")
        ]
        for stage in range(1 if engine.precision == "bf16" else 0, 4):
            memory = self._memory_at(stage)
            parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
            rows.append((str(stage), *map(gib, parts), "← configured" if stage == engine.zero_stage else ""))
        return f"{heading}\n{table(rows)}\n{self._fit()}"

    def _memory_at(self, stage: int) -> Memory:
        config = self.config.engine.model_copy(update={"zero_stage": stage})
        return memory_per_rank(self.costs, config, self.plan.micro_batch_size, self.plan.world_size)

    def _fit(self) -> str:
        if self.device.type != "cuda":
            return "No GPU is visible here: compare with your device's memory, of which some 8 % go to CUDA itself."
        name, there = torch.cuda.get_device_name(self.device), device_bytes(self.device)
        if fits(self._memory_at(self.config.engine.zero_stage), there):
            return f"It fits: {name} has {gib(there)} GiB."
        advice = out_of_memory_advice(self.costs, self.plan, self.config.engine, there)
        return f"WILL NOT FIT in {name}: {advice}."

    def _disk(self) -> str:
        duration, first = self.config.duration, next(iter(self.costs.trained.values()))
        best = duration.keep_best if getattr(self.config, "validation", None) else 0
        if getattr(self.config, "choose", "last") == "best":
            best = max(1, best)
        size, kept = _BYTES * self.costs.state_elements, duration.keep_checkpoints + best
        text = f"{gib(size)} GiB each, of which the newest {duration.keep_checkpoints}"
        text += f" and the best {best} are kept" if best else " are kept"
        total = size * (kept * self.num_seeds + 1) + _BYTES * first * self.num_seeds  # one more while it is written
        if snapshots := self._num_snapshots():
            total += snapshots * 2 * _BYTES * first
            text += f"; {snapshots} snapshots of averages, {gib(2 * _BYTES * first)} GiB each"
        there = next(path for path in [self.directory, *self.directory.parents] if path.exists())
        free = shutil.disk_usage(there).free
        short = "" if total < free else ": NOT ENOUGH"
        rows = [
            ("checkpoints", text),
            ("on the disk", f"up to {gib(total)} GiB, with what is published; {gib(free)} GiB are free{short}"),
        ]
        return table(rows)

    def _num_snapshots(self) -> int:
        if not (isinstance(self.config, TrainLdmConfig) and self.config.ema.post_hoc):
            return 0
        steps = self.plan.num_steps(self.config.duration.images)
        return math.ceil(steps / math.ceil(steps / self.config.ema.snapshots))

    def _time(self) -> str:
        if isinstance(self.rate, Rate):
            rows = self._expected(self.rate)
        else:
            rows = [("expected time", f"unknown: {self.rate.reason}; --rate takes one measured elsewhere")]
        if self.costs.training_flops() >= _ANCHORED_FLOPS:
            rows.append(("for comparison", self._anchor()))
        return table(rows)

    @property
    def _images_left(self) -> int:
        return max(0, self.images * self.num_seeds - self.images_seen)

    def _expected(self, rate: Rate) -> list[tuple[str, str]]:
        if not self._images_left:
            return [("expected time", f"none: all {self.images * self.num_seeds:,} images have been seen")]
        # Until the networks that join later do so, an image takes less.
        faster = self.costs.training_flops() / self.costs.mean_training_flops(self.images)
        mean = rate.images_per_sec * faster
        text = f"{span(self._images_left / mean)} for {self._images_left:,} images at {significant(mean)} images/s"
        return [("expected time", text), ("", rate.how), ("", "without pictures, validation, saving, waiting for data")]

    def _anchor(self) -> str:
        device, flops, source = ANCHOR
        share = flops / (DATASHEET[device][0] * 1e12)
        rate = flops / self.costs.mean_training_flops(self.images)
        time = span(self._images_left / (rate * self.plan.world_size))
        devices = f"{self.plan.world_size} {device}, each with {significant(rate)} images/s"
        return f"{time} on {devices}: the {flops / 1e12:.0f} TFLOP/s of {source}, {100 * share:.0f} % of bf16's peak"


def count(number: int, noun: str) -> str:
    """`1 rank`, `8 ranks`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def significant(value: float) -> str:
    """Three digits that count: `0.0665`, `45.9`, `1,340`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def giga(flops: float) -> str:
    """FLOPs in units of 1e9: `3,047.8`, `0.512`."""
    return f"{flops / 1e9:,.1f}" if flops >= 1e9 else f"{flops / 1e9:.3f}"


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3.1 h`, `4.1 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.1f} s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns in line: the first flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and index else cell.ljust(width)
            for index, (cell, width, right) in enumerate(zip(row, widths, numeric, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").isdigit() or not cell
