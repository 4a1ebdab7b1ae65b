"""The one training loop: restore, then load, step, log, save until the images are seen."""

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from hdtrain.config.batch import BatchPlan, every_steps
from hdtrain.config.engine import DurationConfig, EngineConfig, GuardConfig
from hdtrain.data.prefetch import Prefetcher
from hdtrain.distributed.collectives import all_gather_objects, all_reduce_max, all_reduce_mean, all_reduce_sum, device
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.stop import NUM_REASONS, STOP, STOPPED_EXIT_CODE, Deadline, stop_reason
from hdtrain.distributed.watchdog import Watchdog
from hdtrain.distributed.world import World
from hdtrain.errors import TrainingError
from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.run_dir import RunDir
from hdtrain.progress import Progress
from hdtrain.training.costs import Costs
from hdtrain.training.guard import Guard, where_refused
from hdtrain.training.lr import lr_at
from hdtrain.training.memory import device_bytes, is_out_of_memory, out_of_memory_advice
from hdtrain.training.meter import Meter
from hdtrain.training.metrics import MetricWriter
from hdtrain.training.peak import device_peak_flops
from hdtrain.training.saving import Checkpoints
from hdtrain.training.task import Source, Task


class LoopConfig(Protocol):
    """The parts of a training config that the loop reads."""

    @property
    def duration(self) -> DurationConfig:
        """Images to see."""
        ...

    @property
    def engine(self) -> EngineConfig:
        """How a step is computed."""
        ...

    @property
    def guard(self) -> GuardConfig:
        """When a step is not taken."""
        ...


@dataclass
class Trainer:
    """Trains one task. The result is the same for 10 steps + resume + 10 steps as for 20 steps."""

    title: str
    task: Task
    source: Source
    plan: BatchPlan
    config: LoopConfig
    world: World
    seed: int
    run: RunDir
    costs: Costs
    step: int = 0

    def __post_init__(self) -> None:
        self.duration = self.config.duration
        self.num_steps = self.plan.num_steps(self.duration.images)
        self.guard = Guard(self.config.guard)
        self.checkpoints = Checkpoints(self.run, self.duration, self.world)
        self.engines, self.choice = list(self.task.engines.values()), self.task.choice
        self.deadline = Deadline.from_environment()
        self.watchdog = Watchdog(
            self.run.heartbeats,
            self.world,
            timeout_sec=self.config.engine.hang_timeout_sec,
            title=self.title,
            checkpoints=self.run.checkpoints,
        )
        self.stopping = ""
        """Why the run leaves before its end."""
        self._validation: float | None = None
        self._lrs: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        """Gradient norms of the engines that took the last step."""

    @property
    def images_seen(self) -> int:
        """By the steps made so far."""
        return self.step * self.plan.global_batch_size

    def train(self) -> None:
        """Run to the end, or save and leave with exit code 3 when a signal asks for it or the job's time is up."""
        STOP.install()
        self._restore()
        if self._over:
            return
        batches = Prefetcher(lambda item: self.source.batch(self.plan.positions(*item)), self._passes())
        total = self.num_steps * self.plan.global_batch_size
        self.meter = Meter(batches, self.plan.global_batch_size)
        progress = Progress(self.title, total, done=self.images_seen, enabled=self.world.is_main)
        with progress, self.watchdog, self._writer() as writer, self._out_of_memory_explained():
            self._run(iter(batches), writer, progress)
            self.watchdog.beat(self.step, "writing the checkpoint")
            self.checkpoints.wait()
        if not self._over:
            self._leave()
        if self.world.is_main:
            print(f"{self.title}: {progress.done:,} images seen, {progress.rate:.1f} img/s in this run")

    @property
    def _over(self) -> bool:
        """Every image is seen, or the task's choice is made."""
        return self.step == self.num_steps or (self.choice is not None and self.choice.ended)

    def _run(self, stream: Iterator[Any], writer: MetricWriter, progress: Progress) -> None:
        save_every = self._every(self.duration.checkpoint_every_images, 10)
        show_every = self._every(self.duration.visualise_every_images, 5)
        validate_every = self._every(self.choice.every_images, 20) if self.choice else show_every
        while not self._over and not self.stopping:
            self.meter.go_on()
            logs, keys = self._accumulate(stream)
            self._update(logs, keys)
            self.checkpoints.check()
            self.meter.step()
            progress.update(self.plan.global_batch_size, f"loss {float(next(iter(logs.values()))):.4f}")
            first, last = self.step == 1, self.step == self.num_steps
            improved = False
            figures: dict[str, float] = {}
            if last or first or self.step % self.duration.log_every_steps == 0:
                figures |= self._figures(logs)
            if last or first or self.step % validate_every == 0:
                self.watchdog.beat(self.step, "validating")
                figures |= self._validate()
                improved = self._choose()
            if last or first or self.step % show_every == 0:
                self.watchdog.beat(self.step, "drawing samples")
                writer.images(self.step, self.task.visualise())
            if figures:
                writer.scalars(self.step, self.images_seen, figures)
            self.checkpoints.snapshot(self.step, self.num_steps, self.images_seen, self.engines)
            if self._over or self.stopping or improved or self.step % save_every == 0:
                self._save()

    @contextlib.contextmanager
    def _out_of_memory_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            here = device_bytes(device(), ranks_here=self.world.size)
            advice = out_of_memory_advice(self.costs, self.plan, self.config.engine, here)
            raise TrainingError(f"{self.title}: out of memory in step {self.step + 1}. It {advice}") from error

    def _every(self, every_images: int | None, times: int) -> int:
        return every_steps(every_images, self.duration, times, self.plan.global_batch_size)

    def _writer(self) -> MetricWriter:
        return MetricWriter(self.run.metrics, self.run.tensorboard, self.step, enabled=self.world.is_main)

    def _passes(self) -> Iterator[tuple[int, int, int]]:
        """What `plan.positions` takes, for every pass that this rank has to make."""
        for step in range(self.step, self.num_steps):
            for accumulation_step in range(self.plan.accumulation_steps):
                yield step, accumulation_step, self.world.rank

    def _accumulate(self, stream: Iterator[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Losses and gradients of one step's images: every pass of its accumulation."""
        logs: dict[str, list[Tensor]] = {}
        keys: list[str] = []
        for accumulation_step in range(self.plan.accumulation_steps):
            self.watchdog.beat(self.step, "waiting for data")
            batch = next(stream)
            self.watchdog.beat(self.step, "computing")
            draws = Draws(self.seed, self.step, accumulation_step, self.world.rank, self.plan, device())
            for name, value in self.task.micro_step(batch, draws, self.images_seen).items():
                logs.setdefault(name, []).append(value.detach().float())
            keys += batch.keys
        return {name: torch.stack(values).mean() for name, values in logs.items()}, keys

    def _update(self, logs: dict[str, Tensor], keys: list[str]) -> None:
        """Step the engines, if no rank and no engine has a reason against it; note if any rank has one to stop.

        One small all-reduce: the reasons must be the same everywhere.
        """
        self.watchdog.beat(self.step, "agreeing")
        values = torch.stack(list(logs.values())).tolist()
        finite = all(map(math.isfinite, values))
        votes = STOP.votes(self.deadline.reached(self.checkpoints.save_sec, self.meter.step_sec))
        report = [*votes, float(not finite), values[0] / self.world.size]
        report = all_reduce_sum(torch.tensor(report, dtype=torch.float64, device=device())).tolist()
        self.stopping = stop_reason(report[:NUM_REASONS], self.deadline)
        bad, loss = report[NUM_REASONS:]
        problem = ""
        if bad:
            problem = "loss is not finite"
        elif loss > (limit := self.guard.loss_limit()):
            problem = f"loss spike: {loss:.4g}, where up to {limit:.4g} was to be expected"
        self._norms = norms = {}
        for name, engine in self.task.engines.items():
            limit = -1.0 if problem else self.guard.grad_norm_limit(name)
            lr = lr_at(self.images_seen, engine.optim, self.duration.images, self.plan.global_batch_size)
            self._lrs["lr" if engine is self.engines[0] else f"lr/{name}"] = lr
            taken = engine.step(lr, limit)
            norm = math.nan if engine.grad_norm is None else engine.grad_norm
            if taken:
                norms[name] = norm
            elif taken is False and not problem:
                what = f"is {norm:.4g}, where up to {limit:.4g} was to be expected"
                problem = f"gradient norm of {name} {what if math.isfinite(norm) else 'is not finite'}"
        self.step += 1
        if problem:
            self._refuse(problem, dict(zip(logs, values, strict=True)), keys)
        else:
            self.guard.saw(loss, norms)

    def _refuse(self, problem: str, losses: dict[str, float], keys: list[str]) -> None:
        """Pass the batch over if the config allows it, else stop with what is known."""
        where = where_refused(all_gather_objects((self.world.rank, losses, keys)))
        message = f"{self.title}: {problem} at step {self.step} ({where})"
        if self.guard.may_skip():
            if self.world.is_main:
                count = f"{self.guard.skipped} of {self.config.guard.skip_batches}"
                print(f"{message}; passed over ({count} that guard.skip_batches allows)", file=sys.stderr)
            return
        self.checkpoints.wait()
        made = f"only {', '.join(self._norms)}" if self._norms else "nothing"  # engines step one after the other
        saved = all_gather_objects(find_latest(self.run.checkpoints))[0]  # the main rank has written it
        raise TrainingError(
            f"{message}; {made} was updated with it; last good checkpoint: {saved or 'none'}. The same command with "
            f"guard.skip_batches={self.guard.skipped} passes such batches over; if they come often, a lower optim.lr "
            "or a smaller optim.clip_grad_norm helps"
        )

    def _figures(self, logs: dict[str, Tensor]) -> dict[str, float]:
        """Losses are means over ranks; the wait for data is that of the rank that waited most."""
        means = all_reduce_mean(torch.stack([value.double() for value in logs.values()]))
        values = dict(zip(logs, means.tolist(), strict=True))
        for name, (sums, counts) in self.task.pop_statistics().items():
            both = all_reduce_sum(torch.stack([sums, counts]).double())
            values |= {f"{name}/{i}": float(s / n) for i, (s, n) in enumerate(both.T) if n > 0}
        values |= self._lrs
        rates = self.meter.read(self.costs.training_flops(self.images_seen - 1), self._peak_flops)
        rates["data_wait"] = float(all_reduce_max(torch.tensor(rates["data_wait"], device=device())))
        values |= {f"grad_norm/{name}": norm for name, norm in self._norms.items()}
        if self.guard.skipped:
            values["skipped_batches"] = self.guard.skipped
        return values | rates

    @cached_property
    def _peak_flops(self) -> float:
        """Of all ranks' devices together, a second."""
        return device_peak_flops(device(), self.config.engine.precision) * self.world.size

    def _validate(self) -> dict[str, float]:
        figures = self.task.validate()
        held_out = [value for name, value in figures.items() if name.startswith("validation/")]
        self._validation = held_out[0] if held_out else None  # what is measured on training data chooses nothing
        return figures

    def _choose(self) -> bool:
        """Whether the weights of this step are the best so far, and must be kept. The same on every rank."""
        if self.choice is None:
            return False
        improved = self.choice.saw(self._validation, self.step, self.images_seen)
        if self.choice.ended and self.world.is_main:
            print(f"{self.title}: {self.choice}", file=sys.stderr)
        return improved and self.choice.keeps_best

    def _save(self) -> None:
        self.watchdog.beat(self.step, "saving")
        meta: dict[str, Any] = {"images_seen": self.images_seen, "world_size": self.world.size}
        meta |= {"guard": self.guard.state(), "validation": self._validation}
        spared = None
        if self.choice is not None:
            meta["choice"] = self.choice.state()
            spared = self.choice.best_step if self.choice.keeps_best else None
        self.checkpoints.save(self.step, self.engines, meta, spared)

    def _restore(self) -> None:
        meta = self.checkpoints.load(self.engines)
        if meta is None:
            return
        self.step, self._validation = int(meta["step"]), meta["validation"]
        self.guard.load(meta["guard"])
        if self.choice is not None:
            self.choice.load(meta["choice"])
        if self.world.is_main:
            print(
                f"{self.title}: going on from step-{self.step:08d}, {meta['images_seen']:,} images seen",
                file=sys.stderr,
            )

    def _leave(self) -> None:
        if self.world.is_main:
            print(
                f"{self.title}: stopped {self.stopping} after step {self.step} of {self.num_steps}, state is saved; "
                "the same command goes on from here",
                file=sys.stderr,
            )
        raise SystemExit(STOPPED_EXIT_CODE)
