"""Checkpoints and EMA snapshots of a run: gathered at once, written by a thread while training goes on."""

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hdtrain.config.engine import DurationConfig
from hdtrain.distributed.collectives import all_reduce_max, device
from hdtrain.distributed.world import World
from hdtrain.errors import CheckpointError
from hdtrain.formats.atomic import write_through
from hdtrain.formats.checkpoint import check_files, find_latest, prune, read_meta, remove_leftovers, write_checkpoint
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.ema import average_names
from hdtrain.training.engine import Engine, State


@dataclass
class Checkpoints:
    """The checkpoints of one run. Every rank calls; the main one writes."""

    run: RunDir
    duration: DurationConfig
    world: World
    save_sec: float = 0.0
    """The longest time from a call of `save` to the published checkpoint, on the main rank."""
    _writing: "list[Future[None]]" = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    def save(self, step: int, engines: list[Engine], meta: dict[str, Any], spared: int | None = None) -> None:
        """Copy the state at once, and publish it in the background; an earlier one is awaited first.

        Args:
            step: that was made.
            engines: whose state it is.
            meta: what else is to be known.
            spared: a step whose checkpoint stays, whatever the newest and the best are.
        """
        started = time.monotonic()
        self.wait()
        state: State = {}
        for engine in engines:
            state |= engine.state(self.world.is_main)
        meta["steps"] = {engine.name: engine.steps for engine in engines}

        def publish() -> None:
            write_checkpoint(self.run.checkpoints, step, lambda folder: _write(folder, state), meta)
            prune(self.run.checkpoints, self.duration.keep_checkpoints, self.duration.keep_best, spared)
            self.save_sec = max(self.save_sec, time.monotonic() - started)

        self.in_background(publish)

    def snapshot(self, step: int, num_steps: int, images_seen: int, engines: list[Engine]) -> None:
        """Write down the post-hoc averages in the background, at `ema.snapshots` of `num_steps` steps and the last."""
        for engine in engines:
            if engine.ema is None or not engine.ema.post_hoc:
                continue
            if step < num_steps and step % math.ceil(num_steps / engine.ema.snapshots):
                continue
            tensors = engine.averages(average_names(True)[1:], self.world.is_main)
            write = partial(write_tensors, tensors=tensors, metadata={"updates": str(engine.steps)})
            self.in_background(partial(write_through, self.run.ema_snapshot(images_seen), write))

    def in_background(self, write: Callable[[], None]) -> None:
        """Let the main rank's thread call `write`, after what it has to write already."""
        if self.world.is_main:
            self.check()
            self._writing.append(self._pool.submit(write))

    def check(self) -> None:
        """Raise what went wrong in the background so far, such as a full disk."""
        while self._writing and self._writing[0].done():
            self._writing.pop(0).result()

    def wait(self) -> None:
        """Until everything is on the disk."""
        while self._writing:
            self._writing.pop(0).result()

    def load(self, engines: list[Engine]) -> dict[str, Any] | None:
        """Restore the engines from the newest checkpoint, which the main rank finds and checks.

        Returns:
            Its meta; None without a checkpoint.

        Raises:
            CheckpointError: it is damaged, or does not fit.
        """
        found = None
        if self.world.is_main:
            remove_leftovers(self.run.checkpoints)
            found = find_latest(self.run.checkpoints)
            if found:
                check_files(found, read_meta(found))
        step = int(
            all_reduce_max(torch.tensor(int(found.name.removeprefix("step-")) if found else -1, device=device()))
        )
        if step < 0:
            return None
        folder = self.run.checkpoints / f"step-{step:08d}"
        meta = read_meta(folder)
        missing = [engine.name for engine in engines if engine.name not in meta["steps"]]
        if missing:
            raise CheckpointError(f"{folder}: holds no state of {', '.join(missing)}")
        for engine in engines:
            engine.load(folder, int(meta["steps"][engine.name]))
        return meta


def read_weights(run: RunDir, step: int, engine: str) -> dict[str, Tensor]:
    """Full fp32 weights and buffers of one engine as they were after `step`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    folder = run.checkpoints / f"step-{step:08d}"
    check_files(folder, read_meta(folder))
    paths = [folder / f"{engine}.{what}.safetensors" for what in ("weights", "buffers")]
    return {name: value for path in paths if path.exists() for name, value in load_file(path).items()}


def _write(folder: Path, state: State) -> None:
    for stem, tensors in state.items():
        write_tensors(folder / f"{stem}.safetensors", tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, readable for whom the umask allows it (`save_file` leaves it to its owner alone).

    Raises:
        OSError: as the system told it, such as a full disk.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise
    path.chmod(mode)
