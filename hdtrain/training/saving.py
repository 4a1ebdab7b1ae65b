"""Checkpoints and EMA snapshots of a run: gathered at once, written by a thread while training goes on."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hdtrain.config.engine import DurationConfig
from hdtrain.distributed.collectives import all_reduce_max, device
from hdtrain.distributed.world import World
from hdtrain.errors import CheckpointError
from hdtrain.formats.checkpoint import check_files, find_latest, prune, read_meta, remove_leftovers, write_checkpoint
from hdtrain.training.engine import Engine, State


@dataclass
class Checkpoints:
    """The checkpoints of one run. Every rank calls; the main one writes."""

    root: Path
    duration: DurationConfig
    world: World
    save_sec: float = 0.0
    """The longest time from a call of `save` to the published checkpoint, on the main rank."""
    _writing: "Future[None] | None" = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    def save(self, step: int, engines: list[Engine], meta: dict[str, Any]) -> None:
        """Copy the state at once, and publish it in the background; an earlier one is awaited first."""
        started = time.monotonic()
        self.wait()
        state: State = {}
        for engine in engines:
            state |= engine.state(self.world.is_main)
        meta["steps"] = {engine.name: engine.steps for engine in engines}

        def publish() -> None:
            write_checkpoint(self.root, step, lambda folder: _write(folder, state), meta)
            prune(self.root, self.duration.keep_checkpoints, self.duration.keep_best)
            self.save_sec = max(self.save_sec, time.monotonic() - started)

        self.in_background(publish)

    def in_background(self, write: Callable[[], None]) -> None:
        """Let the main rank's thread call `write`, after what it has to write already."""
        if self.world.is_main:
            self.check()
            self._writing = self._pool.submit(write)

    def check(self) -> None:
        """Raise what went wrong in the background so far, such as a full disk."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Until everything is on the disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def load(self, engines: list[Engine]) -> dict[str, Any] | None:
        """Restore the engines from the newest checkpoint, which the main rank finds and checks.

        Returns:
            Its meta; None without a checkpoint.

        Raises:
            CheckpointError: it is damaged, or does not fit.
        """
        found = None
        if self.world.is_main:
            remove_leftovers(self.root)
            found = find_latest(self.root)
            if found:
                check_files(found, read_meta(found))
        step = int(
            all_reduce_max(torch.tensor(int(found.name.removeprefix("step-")) if found else -1, device=device()))
        )
        if step < 0:
            return None
        folder = self.root / f"step-{step:08d}"
        meta = read_meta(folder)
        missing = [engine.name for engine in engines if engine.name not in meta["steps"]]
        if missing:
            raise CheckpointError(f"{folder}: holds no state of {', '.join(missing)}")
        for engine in engines:
            engine.load(folder, int(meta["steps"][engine.name]))
        return meta


def _write(folder: Path, state: State) -> None:
    for stem, tensors in state.items():
        save_file(tensors, folder / f"{stem}.safetensors")
