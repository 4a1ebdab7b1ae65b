"""The units of a sampling run, each made once, by ranks of any number of jobs that share the run directory.

Every rank begins with its own share and then takes what is left over. It asks nobody: `hdtrain.formats.claims` say
which units are in somebody's hands, and shards that are there which are done. No collective: ranks come and go.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.distributed.stop import STOP, STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import remove_temporaries
from hdtrain.formats.claims import Claims
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import is_complete, sidecar_path
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import Unit
from hdtrain.sampling.sheet import ContactSheet
from hdtrain.sampling.write import write_unit

POLL_SEC = 1.0
SHEET_EVERY_SEC = 60.0
PUBLISH = "publish"
"""Name of the claim on publishing."""


@dataclass
class Worker:
    """This rank at work on a run."""

    source: ImageGenerator
    units: Sequence[Unit]
    run: RunDir
    world: World
    claims: Claims
    classes: list[str] | None
    common: dict[str, Any]
    _done: set[int] = field(default_factory=set)
    """Numbers of the units whose shards are there, as far as this rank knows."""
    _progress: Progress | None = None
    _sheet_time: float = -SHEET_EVERY_SEC

    def __post_init__(self) -> None:
        self._sheet = ContactSheet(self.run.contact_sheet, self.claims.token)

    def make_all(self) -> None:
        """Return when every unit is there, on rank 0; the others, when nothing is left that nobody works on.

        Raises:
            SystemExit: with code 3, when a signal asked for it; what was not finished is given back.
        """
        mine = set(range(self.world.rank, len(self.units), self.world.size))
        order = sorted(range(len(self.units)), key=lambda number: (number not in mine, number))
        total = sum(len(unit.indices) for unit in self.units)
        self._look()
        self.claims.tell(total_images=total)
        self.claims.say()
        done = sum(len(self.units[number].indices) for number in self._done)
        with Progress("sample", total, done=done, enabled=self.world.is_main) as self._progress:
            while True:
                left = [number for number in order if not self._is_done(number)]
                if not left:
                    return
                if not sum(map(self._make, left)):
                    if not self.world.is_main:
                        return
                    self._wait()

    def _is_done(self, number: int) -> bool:
        if number not in self._done and is_complete(self.run.shards / self.units[number].name):
            self._note(number)
        return number in self._done

    def _note(self, number: int) -> None:
        """Another has made this unit."""
        self._done.add(number)
        if self._progress:
            self._progress.update(len(self.units[number].indices))

    def _look(self) -> None:
        """Which shards are there, in one look at the folder."""
        with contextlib.suppress(FileNotFoundError):
            names = {entry.name for entry in os.scandir(self.run.shards)}
            for unit in self.units:
                if unit.number not in self._done and {unit.name, sidecar_path(Path(unit.name)).name} <= names:
                    self._note(unit.number)

    def _wait(self) -> None:
        """Others have what is left."""
        self._check_stop()
        time.sleep(POLL_SEC)
        self._look()

    def _make(self, number: int) -> bool:
        """Whether this rank made the unit."""
        unit = self.units[number]
        self._check_stop()
        if self._is_done(number) or not self.claims.take(unit.name):
            return False
        try:
            if self._is_done(number):  # done and given back between the look and the claim
                return False
            self.claims.tell(unit=unit.name, unit_images=0)
            try:
                write_unit(
                    self.source,
                    unit,
                    self.run.shards / unit.name,
                    self.classes,
                    self.common,
                    self._saw,
                    self.claims.token,
                )
            except FileNotFoundError:
                if not is_complete(self.run.shards / unit.name):
                    raise  # else another, who took this rank for dead, has made it and cleared up
            self._done.add(number)
            self._show()
        finally:
            self.claims.release(unit.name)
            self.claims.tell(unit="", unit_images=0)
        return True

    def _saw(self, indices: list[int], images: np.ndarray) -> None:
        state = self.claims.state
        if self._progress:
            self._progress.update(len(indices))
        self.claims.tell(
            unit_images=state.unit_images + len(indices),
            images=state.images + len(indices),
            images_per_sec=(state.images + len(indices)) / max(time.time() - state.started, 1e-9),
        )
        if self.world.is_main:
            for index, image in zip(indices, images, strict=True):
                self._sheet.add(self.source.plan.label(index), image)
        self._check_stop()

    def _show(self) -> None:
        if self.world.is_main and time.monotonic() - self._sheet_time >= SHEET_EVERY_SEC:
            self._sheet_time = time.monotonic()
            self._sheet.write(self.classes)

    def _check_stop(self) -> None:
        if STOP.is_set:
            print("sample: stopped by a signal; finished shards stay, and the same command continues")
            raise SystemExit(STOPPED_EXIT_CODE)

    def publishes(self) -> bool:
        """Whether it falls to this rank to publish. The others wait for it, and take over if that one dies."""
        while not self.run.manifest.exists():
            with contextlib.suppress(FileNotFoundError):  # it is published, and the claims are gone
                if self.claims.take(PUBLISH) and not self.run.manifest.exists():
                    remove_temporaries(self.run.shards)
                    return True
            self._check_stop()
            time.sleep(POLL_SEC)
        return False
