"""B8: a step of the engine at every ZeRO stage against DDP with fused AdamW, on gloo ranks, with the same batches.

Every rank runs this module; all take the same turns. Each contestant trains a denoiser of its own, from the
same weights on the same batches, so all losses must agree at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.compare import Contestant, Outcome, OutputsDifferError, compare
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import DurationConfig, EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.seeds import generator
from hdtrain.distributed.world import World
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.denoiser import build_denoiser
from hdtrain.training.diffusion import TensorDenoiser
from hdtrain.training.engine import Engine
from hdtrain.training.saving import Checkpoints

OPTIM = OptimConfig(lr=1e-4, clip_grad_norm=1.0)
TOLERANCE = 1e-6
"""Largest difference of a loss, relative."""
GOAL = 1.5
"""A step of ZeRO-1 may take so many times as long as DDP's."""
DDP, ZERO_1 = "DDP + fused AdamW", "ZeRO-1"


@dataclass(frozen=True)
class Work:
    """What a step does."""

    preset: str
    size: int
    micro_batch: int
    accumulation_steps: int
    steps: int
    """A turn."""
    seed: int = 0

    def denoiser(self) -> nn.Module:
        """The same weights for every contestant and rank."""
        torch.manual_seed(self.seed)
        return TensorDenoiser(build_denoiser(self.preset, 3, self.size))

    def batch(self, step: int, accumulation_step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps, noise."""
        source = generator(self.seed, "bench", step, accumulation_step, rank)
        z, noise = torch.randn(2, self.micro_batch, 3, self.size, self.size, generator=source)
        return z, torch.randint(0, 1000, (self.micro_batch,), generator=source), noise


@dataclass
class Trainee:
    """A model in training: `pass_` computes one pass and its gradients, `update` takes the step."""

    work: Work
    world: World
    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, bool], None]
    update: Callable[[], None]
    before: Callable[[], None] = lambda: None
    losses: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """Steps, until all ranks have made them."""
        self.before()
        for _ in range(self.work.steps):
            step, total = len(self.losses), 0.0
            for i in range(self.work.accumulation_steps):
                z, t, noise = self.work.batch(step, i, self.world.rank)
                loss = (self.forward(z, t) - noise).square().mean()
                self.backward(loss, i == self.work.accumulation_steps - 1)
                total += float(loss.detach())
            self.update()
            self.losses.append(total / self.work.accumulation_steps)
        dist.barrier()


def ddp(work: Work, world: World) -> Trainee:
    """Plain torch."""
    model = DistributedDataParallel(work.denoiser())
    optimizer = torch.optim.AdamW(model.parameters(), OPTIM.lr, OPTIM.betas, OPTIM.eps, OPTIM.weight_decay, fused=True)

    def backward(loss: Tensor, last: bool) -> None:
        model.require_backward_grad_sync = last
        (loss / work.accumulation_steps).backward()

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def forward(z: Tensor, t: Tensor) -> Tensor:
        model.require_backward_grad_sync = True  # decided again at the backward pass
        output: Tensor = model(z, t)
        return output

    return Trainee(work, world, forward, backward, update)


def zero(work: Work, world: World, stage: int, averages: bool = False, save_to: Path | None = None) -> Trainee:
    """Our engine; with `save_to` every turn begins with a checkpoint that is written while it steps."""
    global_batch = work.micro_batch * work.accumulation_steps * world.size
    plan = BatchPlan(global_batch, work.micro_batch, work.accumulation_steps, world.size)
    config: Any = EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
    engine = Engine("denoiser", work.denoiser(), OPTIM, plan, config, EmaConfig() if averages else None)
    before: Callable[[], None] = lambda: None  # noqa: E731
    if save_to:
        checkpoints = Checkpoints(RunDir(save_to), DurationConfig(images=1), world)
        before = lambda: checkpoints.save(engine.steps, [engine], {})  # noqa: E731
    return Trainee(work, world, engine, lambda loss, _: engine.backward(loss), lambda: _step(engine), before)


def _step(engine: Engine) -> None:
    if not engine.step(OPTIM.lr):
        raise OutputsDifferError("the engine refused a step")


def run(work: Work, rounds: int, folder: Path) -> Outcome:
    """Steps a second. Every rank calls."""
    world = World.from_environment()
    trainees = {DDP: ddp(work, world)}
    trainees |= {f"ZeRO-{stage}": zero(work, world, stage) for stage in range(4)}
    trainees["ZeRO-1, 3 averages"] = zero(work, world, 1, averages=True)
    trainees["ZeRO-1, 3 averages, a checkpoint a turn"] = zero(work, world, 1, True, folder / "checkpoint")
    contestants = [Contestant(name, trainee.turn) for name, trainee in trainees.items()]
    title = (
        f"a step of {work.preset} at {work.size}×{work.size}, {world.size} ranks × {work.accumulation_steps} passes × "
        f"{work.micro_batch} images"
    )
    outcome = compare(title, "steps/s", work.steps, contestants, rounds)
    _same_losses({name: trainee.losses for name, trainee in trainees.items()})
    outcome.expect(ZERO_1, DDP, 1 / GOAL)
    parameters = list(work.denoiser().parameters())
    outcome.notes.append(
        f"{len(parameters)} parameter tensors, {sum(p.numel() for p in parameters):,} parameters; losses of "
        f"{len(trainees[DDP].losses)} steps agree to {TOLERANCE:.0e}"
    )
    return outcome


def _same_losses(losses: dict[str, Sequence[float]]) -> None:
    for name, found in losses.items():
        worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses[DDP], strict=True))
        if worst > TOLERANCE:
            raise OutputsDifferError(f"{name}: losses differ from those of {DDP} by {worst:.1e}")
