"""The units of a run, each made once, by ranks of any number of jobs that share the run directory. No torch.

Every rank begins with its own share and then takes what is left over. It asks nobody: `hdtrain.formats.claims` say
which units are in somebody's hands, and shards that are there which are done. No collective: ranks come and go. What a
unit becomes may depend on nothing but the unit: of two ranks that both make one, because the first was taken for dead,
the second replaces the shard by the same bytes.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdtrain.distributed.stop import STOP, STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import remove_temporaries
from hdtrain.formats.claims import Claims
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import is_complete, sidecar_path
from hdtrain.progress import Progress

POLL_SEC = 1.0
PUBLISH = "publish"
"""Name of the claim on publishing."""


@dataclass(frozen=True)
class SharedUnit:
    """One shard to be made."""

    name: str
    """Of the shard's file, in the run's `shards/`."""
    images: int


@dataclass
class SharedWork:
    """This rank at work on a run.

    Args:
        title: of the progress bar and of messages.
        units: all of them, in the same order for every rank.
        run: the run directory.
        world: this rank's place in its job.
        claims: of this rank, open.
    """

    title: str
    units: Sequence[SharedUnit]
    run: RunDir
    world: World
    claims: Claims
    _done: set[int] = field(default_factory=set)
    """Numbers of the units whose shards are there, as far as this rank knows."""
    _progress: Progress | None = None

    @property
    def writer(self) -> str:
        """For the temporary names of what this rank writes."""
        return self.claims.token

    def make_all(
        self,
        make: Callable[[int, Any], None],
        fetch: Callable[[Sequence[int]], Iterable[tuple[int, Any]]] | None = None,
    ) -> None:
        """Return when every unit is there, on rank 0; the others, when nothing is left that nobody works on.

        Args:
            make: publishes the shard of a unit, from its number and what `fetch` gave for it, and calls `saw`.
            fetch: gives units' input, ahead of its use where that pays; None: there is none.

        Raises:
            SystemExit: with code 3, when a signal asked for it; what was not finished is given back.
        """
        mine = set(range(self.world.rank, len(self.units), self.world.size))
        order = sorted(range(len(self.units)), key=lambda number: (number not in mine, number))
        total = sum(unit.images for unit in self.units)
        self._look()
        self.claims.tell(total_images=total)
        self.claims.say()
        done = sum(self.units[number].images for number in self._done)
        with Progress(self.title, total, done=done, enabled=self.world.is_main) as self._progress:
            while left := [number for number in order if not self._is_done(number)]:
                pairs = fetch(left) if fetch else zip(left, itertools.repeat(None), strict=False)
                if not sum(self._make(number, given, make) for number, given in pairs):
                    if not self.world.is_main:
                        return
                    self._wait()

    def saw(self, images: int) -> None:
        """So many more images of the unit at hand are done.

        Raises:
            SystemExit: as `make_all`.
        """
        state = self.claims.state
        if self._progress:
            self._progress.update(images)
        self.claims.tell(
            unit_images=state.unit_images + images,
            images=state.images + images,
            images_per_sec=(state.images + images) / max(time.time() - state.started, 1e-9),
        )
        self._check_stop()

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

    def _is_done(self, number: int) -> bool:
        if number not in self._done and is_complete(self.run.shards / self.units[number].name):
            self._note(number)
        return number in self._done

    def _note(self, number: int) -> None:
        """Another has made this unit."""
        self._done.add(number)
        if self._progress:
            self._progress.update(self.units[number].images)

    def _look(self) -> None:
        """Which shards are there, in one look at the folder."""
        with contextlib.suppress(FileNotFoundError):
            names = {entry.name for entry in os.scandir(self.run.shards)}
            for number, unit in enumerate(self.units):
                if number not in self._done and {unit.name, sidecar_path(Path(unit.name)).name} <= names:
                    self._note(number)

    def _wait(self) -> None:
        """Others have what is left."""
        self._check_stop()
        time.sleep(POLL_SEC)
        self._look()

    def _make(self, number: int, given: Any, make: Callable[[int, Any], None]) -> bool:
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
                make(number, given)
            except FileNotFoundError:
                if not is_complete(self.run.shards / unit.name):
                    raise  # else another, who took this rank for dead, has made it and cleared up
            self._done.add(number)
        finally:
            self.claims.release(unit.name)
            self.claims.tell(unit="", unit_images=0, whole_images=sum(self.units[n].images for n in self._done))
        return True

    def _check_stop(self) -> None:
        if STOP.is_set:
            print(f"{self.title}: stopped by a signal; finished shards stay, and the same command continues")
            raise SystemExit(STOPPED_EXIT_CODE)
