"""B8: a step of the training engine against DistributedDataParallel with fused AdamW, on the same ranks.

*DDP* is plain torch: `DistributedDataParallel` (with `no_sync` in all but the last pass of an accumulation),
`clip_grad_norm_`, fused AdamW, and where averages are kept `torch._foreach_lerp_` of the whole weights on every rank.
All start from the same weights and see the same batches. Their weights and averages after the first steps are compared.

Every rank calls every function here, in the same order.
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.compare import Contestant, Outcome, OutputsDifferError, compare
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import DurationConfig, EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import all_reduce_max, barrier, device
from hdtrain.distributed.world import World
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.denoiser import TensorDenoiser, build_denoiser
from hdtrain.models.ema import profiles
from hdtrain.training.engine import Engine
from hdtrain.training.saving import Checkpoints

DDP = "DDP + fused AdamW"
GOAL = 1 / 1.5
"""Steps a second of ZeRO-1, in those of DDP."""
OPTIM, EMA = OptimConfig(lr=1e-4, clip_grad_norm=1.0), EmaConfig(decay=0.999)
CHECKED_STEPS, TOLERANCE = 10, 1e-6
"""Norm of the difference after so many steps, in the norm of the weights."""
_BATCHES = 8


@dataclass(frozen=True)
class Work:
    """What is trained on what."""

    preset: str
    size: int
    """Height and width of a latent."""
    micro_batch_size: int
    seed: int

    def network(self) -> nn.Module:
        """The same weights at every call."""
        torch.manual_seed(self.seed)
        return TensorDenoiser(build_denoiser(self.preset, 3, self.size)).to(device())

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """z_t, t and ε of this rank's passes, which are repeated."""
        source = torch.Generator().manual_seed(1000 * self.seed + World.from_environment().rank)
        shape = (self.micro_batch_size, 3, self.size, self.size)
        noise = [torch.randn(shape, generator=source).to(device()) for _ in range(2 * _BATCHES)]
        steps = [torch.randint(1000, shape[:1], generator=source).to(device()) for _ in range(_BATCHES)]
        return list(zip(noise[::2], steps, noise[1::2], strict=True))


class Training(Protocol):
    """Something that trains a network step by step."""

    def step(self) -> None:
        """One update, all passes of it."""

    def state(self) -> dict[str, Tensor]:
        """Weights and averages, in full."""


class PlainTraining:
    """Torch alone."""

    def __init__(self, work: Work, accumulation_steps: int, averages: bool):
        net = work.network()
        self.parameters = dict(net.named_parameters())
        self.net = DistributedDataParallel(net, device_ids=None if device().type == "cpu" else [device()])
        rules = {"lr": OPTIM.lr, "betas": OPTIM.betas, "eps": OPTIM.eps, "weight_decay": OPTIM.weight_decay}
        self.optimizer = torch.optim.AdamW(net.parameters(), **rules, fused=True)  # type: ignore[arg-type]
        self.profiles = profiles(EMA.decay, EMA.post_hoc) if averages else {}
        self.averages = {name: [p.detach().clone() for p in self.parameters.values()] for name in self.profiles}
        self.batches, self.accumulation_steps, self.passes, self.updates = work.batches(), accumulation_steps, 0, 0

    def step(self) -> None:
        """As in torch's own examples."""
        for number in range(self.accumulation_steps):
            last = number == self.accumulation_steps - 1
            z, t, noise = self.batches[self.passes % _BATCHES]
            with contextlib.nullcontext() if last else self.net.no_sync():
                ((self.net(z, t) - noise).square().mean() / self.accumulation_steps).backward()
            self.passes += 1
        nn.utils.clip_grad_norm_(self.net.parameters(), OPTIM.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        with torch.no_grad():
            for name, profile in self.profiles.items():
                weight = 1 - profile.beta(self.updates)
                torch._foreach_lerp_(self.averages[name], list(self.parameters.values()), weight)

    def state(self) -> dict[str, Tensor]:
        """Weights and averages."""
        found = {f"weights/{name}": p.detach() for name, p in self.parameters.items()}
        for kind, values in self.averages.items():
            found |= {f"{kind}/{name}": value for name, value in zip(self.parameters, values, strict=True)}
        return found


class EngineTraining:
    """Ours."""

    def __init__(self, work: Work, zero_stage: int, accumulation_steps: int, averages: bool):
        world = World.from_environment()
        global_batch_size = work.micro_batch_size * accumulation_steps * world.size
        plan = BatchPlan(global_batch_size, work.micro_batch_size, accumulation_steps, world.size)
        config = EngineConfig(zero_stage=zero_stage)  # type: ignore[arg-type]
        self.kinds = ["weights", *(profiles(EMA.decay, EMA.post_hoc) if averages else ())]
        self.engine = Engine("denoiser", work.network(), OPTIM, plan, config, EMA if averages else None)
        self.batches, self.accumulation_steps, self.passes = work.batches(), accumulation_steps, 0

    def step(self) -> None:
        """What the training loop asks of the engine."""
        for _ in range(self.accumulation_steps):
            z, t, noise = self.batches[self.passes % _BATCHES]
            self.engine.backward((self.engine(z, t) - noise).square().mean())
            self.passes += 1
        self.engine.step(OPTIM.lr)

    def state(self) -> dict[str, Tensor]:
        """Weights and averages. A collective."""
        gathered = ((kind, name, value) for kind in self.kinds for name, value in self.engine.gathered(kind))
        return {f"{kind}/{name}": value.clone() for kind, name, value in gathered}


def same_trajectory(trainings: dict[str, Training]) -> str:
    """Train all a little and compare with the first; gives a note with the largest difference.

    Raises:
        OutputsDifferError: weights or averages are not the first's.
    """
    states = {}
    for name, training in trainings.items():
        for _ in range(CHECKED_STEPS):
            training.step()
        states[name] = training.state()
    reference = states[DDP]
    size = sum(float(value.double().square().sum()) for value in reference.values())
    worst = 0.0
    for name, state in states.items():
        error = sum(float((state[key].double() - value.double()).square().sum()) for key, value in reference.items())
        difference = (error / size) ** 0.5
        if not difference <= TOLERANCE:
            raise OutputsDifferError(f"{name} is {difference:.1e} away from {DDP} after {CHECKED_STEPS} steps")
        worst = max(worst, difference)
    return f"weights and averages after {CHECKED_STEPS} steps: at most {worst:.1e} from {DDP}'s"


def steps(title: str, trainings: dict[str, Training], num: int, rounds: int) -> Outcome:
    """`num` steps a turn of every training."""
    note = same_trajectory(trainings)

    def run(training: Training) -> None:
        for _ in range(num):
            training.step()
        barrier()

    contestants = [Contestant(name, partial(run, training), barrier) for name, training in trainings.items()]
    outcome = compare(title, "steps/s", num, contestants, rounds)
    outcome.notes += [milliseconds(outcome), note]
    return outcome


def milliseconds(outcome: Outcome) -> str:
    """A note with the median step times."""
    times = {name: 1000 * statistics.median(1 / rate for rate in rates) for name, rates in outcome.rates.items()}
    return "a step in ms: " + ", ".join(f"{name} {time:.0f}" for name, time in times.items())


def stages(work: Work, accumulation_steps: int, num: int, rounds: int) -> Outcome:
    """Every ZeRO stage against DDP."""
    trainings: dict[str, Training] = {DDP: PlainTraining(work, accumulation_steps, averages=False)}
    for stage in range(4):
        trainings[f"ZeRO-{stage}"] = EngineTraining(work, stage, accumulation_steps, averages=False)
    passes = "one pass" if accumulation_steps == 1 else f"{accumulation_steps} passes"
    outcome = steps(f"{passes} a step", trainings, num, rounds)
    outcome.expect("ZeRO-1", DDP, GOAL)
    return outcome


def averages(work: Work, num: int, rounds: int) -> Outcome:
    """What three moving averages cost."""
    trainings: dict[str, Training] = {
        DDP: PlainTraining(work, 1, averages=True),
        "ZeRO-1": EngineTraining(work, 1, 1, averages=True),
    }
    outcome = steps("three moving averages, one pass a step", trainings, num, rounds)
    outcome.expect("ZeRO-1", DDP, GOAL)
    return outcome


def saving(work: Work, folder: Path, rounds: int) -> Outcome:
    """Steps while a checkpoint is written in the background, against those before it."""
    training, world = EngineTraining(work, 1, 1, averages=True), World.from_environment()
    duration = DurationConfig(images=1, keep_checkpoints=1)
    checkpoints = Checkpoints(RunDir(folder), duration, world)
    without, during = "without", "while a checkpoint is written"
    rates: dict[str, list[float]] = {without: [], during: []}
    calls, writes = [], []
    for number in range(-1, rounds):
        barrier()
        before = _steps_until(training, lambda done: done >= 10)
        written = threading.Event()
        started = time.perf_counter()
        checkpoints.save(number + 2, [training.engine], {})
        called = time.perf_counter() - started
        checkpoints.in_background(written.set)
        times = _steps_until(training, lambda _, written=written: written.is_set())  # type: ignore[misc]
        if number >= 0:
            rates[without].append(1 / statistics.median(before))
            rates[during].append(1 / statistics.median(times))
            calls.append(1000 * called)
            writes.append(sum(times))
    checkpoints.wait()
    outcome = Outcome("ZeRO-1 with averages, and a checkpoint", "steps/s", 10, rates)
    size = sum(path.stat().st_size for path in folder.glob("checkpoints/*/*.safetensors")) / 1e6
    outcome.notes += [
        milliseconds(outcome),
        f"{size:.0f} MB; the call, which copies the state, takes {statistics.median(calls):.0f} ms, and writing it in "
        f"the background {statistics.median(writes):.1f} s",
    ]
    return outcome


def _steps_until(training: Training, enough: Callable[[int], bool]) -> list[float]:
    """Seconds of each step until the main rank has enough; at least one."""
    times: list[float] = []
    while True:
        started = time.perf_counter()
        training.step()
        times.append(time.perf_counter() - started)
        over = enough(len(times)) if World.from_environment().is_main else False
        if float(all_reduce_max(torch.tensor(float(over), device=device()))):
            return times


def run(work: Work, num: int, rounds: int, folder: Path, only: Sequence[str]) -> list[Outcome]:
    """All of it, on a rank that has joined the process group."""
    assert dist.is_initialized()
    made: dict[str, Callable[[], Outcome]] = {
        "stages": lambda: stages(work, 1, num, rounds),
        "accumulation": lambda: stages(work, 4, max(1, num // 4), rounds),
        "averages": lambda: averages(work, num, rounds),
        "saving": lambda: saving(work, folder, rounds),
    }
    return [make() for name, make in made.items() if name in only]
