"""The one training loop: restore, then load, step, log, save until the images are seen."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hdtrain.config.batch import BatchPlan, every_steps
from hdtrain.config.training import DurationConfig, OptimConfig
from hdtrain.data.prefetch import Prefetcher
from hdtrain.distributed.collectives import all_reduce_max, all_reduce_mean, barrier, device
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.stop import STOP, STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.errors import TrainingError
from hdtrain.formats.checkpoint import find_latest, prune, read_meta, write_checkpoint
from hdtrain.progress import Progress
from hdtrain.training.lr import lr_at
from hdtrain.training.metrics import MetricWriter
from hdtrain.training.task import Source, Task


@dataclass
class Trainer:
    """Trains one task. The result is the same for 10 steps + resume + 10 steps as for 20 steps."""

    title: str
    task: Task
    source: Source
    plan: BatchPlan
    optim: OptimConfig
    duration: DurationConfig
    world: World
    seed: int
    checkpoints: Path
    metrics: Path
    tensorboard: Path
    step: int = 0

    def train(self) -> None:
        """Run to the end, or save and leave with exit code 3 when a signal asks for it."""
        STOP.install()
        self._restore()
        num_steps = self.plan.num_steps(self.duration.images)
        if self.step == num_steps:
            return
        writer = MetricWriter(self.metrics, self.tensorboard, self.step) if self.world.is_main else None
        batches = Prefetcher(lambda item: self.source.batch(self.plan.positions(*item)), self._passes(num_steps))
        save_every = every_steps(self.duration.checkpoint_every_images, self.duration, 10, self.plan.global_batch_size)
        show_every = every_steps(self.duration.visualise_every_images, self.duration, 5, self.plan.global_batch_size)
        done, total = self.step * self.plan.global_batch_size, num_steps * self.plan.global_batch_size
        meter = _Meter(batches, self.step)
        with Progress(self.title, total, done=done, enabled=self.world.is_main) as progress:
            stream = iter(batches)
            while self.step < num_steps:
                logs, keys = self._step_once(stream)
                stopping = self._agree(STOP.is_set, logs, keys)
                progress.update(self.plan.global_batch_size, f"loss {float(next(iter(logs.values()))):.4f}")
                last = self.step == num_steps
                if last or self.step == 1 or self.step % self.duration.log_every_steps == 0:
                    self._log(writer, logs, meter)
                if writer and (last or self.step == 1 or self.step % show_every == 0):
                    writer.images(self.step, self.task.visualise())
                    meter.restart(self.step)
                if last or stopping or self.step % save_every == 0:
                    self._save()
                    meter.restart(self.step)
                if stopping:
                    break
        if writer:
            writer.close()
        if self.step < num_steps:
            self._leave(num_steps)
        if self.world.is_main:
            print(f"{self.title}: {progress.done:,} images seen, {progress.rate:.1f} img/s in this run")

    def _passes(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """What `plan.positions` takes, for every pass that this rank has to make."""
        for step in range(self.step, num_steps):
            for accumulation_step in range(self.plan.accumulation_steps):
                yield step, accumulation_step, self.world.rank

    def _step_once(self, stream: Iterator[Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """One optimizer step: every pass of its accumulation."""
        images_seen = self.step * self.plan.global_batch_size
        lr = lr_at(images_seen, self.optim, self.duration.images)
        logs: dict[str, list[torch.Tensor]] = {}
        keys: list[str] = []
        for accumulation_step in range(self.plan.accumulation_steps):
            batch = next(stream)
            draws = Draws(self.seed, self.step, accumulation_step, self.world.rank, self.plan, device())
            for name, value in self.task.micro_step(batch, draws, lr, images_seen).items():
                logs.setdefault(name, []).append(value.detach().float())
            keys += batch.keys
        if self.task.ema is not None:
            engine = next(iter(self.task.engines.values()))
            self.task.ema.update(iter(engine.master_weights().items()))
        self.step += 1
        return {name: torch.stack(values).mean() for name, values in logs.items()}, keys

    def _agree(self, stop: bool, logs: dict[str, torch.Tensor], keys: list[str]) -> bool:
        """One small all-reduce a step: has any rank been asked to stop, is a loss or a gradient anywhere not finite?"""
        norms = {f"grad_norm/{n}": e.grad_norm for n, e in self.task.engines.items()}
        figures = {n: float(value) for n, value in [*logs.items(), *norms.items()] if value is not None}
        bad = not all(map(math.isfinite, figures.values()))
        flags = all_reduce_max(torch.tensor([float(stop), float(bad)], device=device()))
        if flags[1]:
            here = f"on rank {self.world.rank}: " if bad else "on another rank; here "
            losses = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            saved = find_latest(self.checkpoints)
            raise TrainingError(
                f"{self.title}: loss or gradient is not finite at step {self.step} {here}{losses}; keys of the batch: "
                f"{', '.join(keys[:8])}{' …' if len(keys) > 8 else ''}; last good checkpoint: {saved or 'none'}; "
                "a lower optim.lr or a smaller optim.clip_grad_norm usually helps"
            )
        return bool(flags[0])

    def _log(self, writer: MetricWriter | None, logs: dict[str, torch.Tensor], meter: "_Meter") -> None:
        """Losses are means over ranks; the wait for data is that of the rank that waited most. The main one writes."""
        means = all_reduce_mean(torch.stack([value.double() for value in logs.values()]))
        rates = meter.read(self.step, self.plan.global_batch_size)
        rates["data_wait"] = float(all_reduce_max(torch.tensor(rates["data_wait"], device=device())))
        if writer is None:
            return
        images_seen = self.step * self.plan.global_batch_size
        values = dict(zip(logs, means.tolist(), strict=True))
        values["lr"] = lr_at(images_seen - self.plan.global_batch_size, self.optim, self.duration.images)
        for name, engine in self.task.engines.items():
            if engine.grad_norm is not None:
                values[f"grad_norm/{name}"] = engine.grad_norm
        writer.scalars(self.step, images_seen, values | rates)

    def _save(self) -> None:
        """All ranks gather, the main one writes; the others wait for it."""

        def write(folder: Path) -> None:
            for engine in self.task.engines.values():
                engine.save(folder, is_main=True)
            if self.task.ema is not None:
                save_file(
                    {k: v.cpu().contiguous() for k, v in self.task.ema.shadow.items()}, folder / "ema.safetensors"
                )

        if self.world.is_main:
            meta = {
                "images_seen": self.step * self.plan.global_batch_size,
                "world_size": self.world.size,
                "ema_updates": self.task.ema.updates if self.task.ema else 0,
            }
            write_checkpoint(self.checkpoints, self.step, write, meta)
            prune(self.checkpoints, self.duration.keep_checkpoints)
        else:
            for engine in self.task.engines.values():
                engine.save(self.checkpoints, is_main=False)
        barrier()

    def _restore(self) -> None:
        folder = find_latest(self.checkpoints)
        if folder is None:
            return
        meta = read_meta(folder)
        self.step = int(meta["step"])
        for engine in self.task.engines.values():
            engine.load(folder)
        if self.task.ema is not None:
            self.task.ema.updates = int(meta["ema_updates"])
            for name, value in load_file(folder / "ema.safetensors", str(device())).items():
                self.task.ema.shadow[name].copy_(value)
        if self.world.is_main:
            print(f"{self.title}: going on from {folder.name}, {meta['images_seen']:,} images seen", file=sys.stderr)

    def _leave(self, num_steps: int) -> None:
        if self.world.is_main:
            print(
                f"{self.title}: stopped by a signal after step {self.step} of {num_steps}, state is saved; "
                "the same command goes on from here",
                file=sys.stderr,
            )
        raise SystemExit(STOPPED_EXIT_CODE)


class _Meter:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batches: Prefetcher[Any], step: int):
        self.batches = batches
        self.restart(step)

    def restart(self, step: int) -> None:
        self.started, self.wait, self.step = time.monotonic(), self.batches.wait_sec, step

    def read(self, step: int, global_batch_size: int) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        values = {
            "images_per_sec": (step - self.step) * global_batch_size / seconds,
            "data_wait": (self.batches.wait_sec - self.wait) / seconds,
        }
        if torch.cuda.is_available():
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.restart(step)
        return values
