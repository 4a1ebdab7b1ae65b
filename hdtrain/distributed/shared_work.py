"""The units of a run, each made once, by processes of any number of jobs that share the run directory. No torch.

Every process begins with its own share and then takes what is left over. It asks nobody: `hdtrain.formats.claims` say
which units are in somebody's hands, and files that are there which are done. No collective: processes come and go. What
a unit becomes may depend on nothing but the unit: of two that both make one, because the first was taken for dead, the
second replaces the file by the same bytes.
"""

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from hdtrain.distributed.stop import SIGNALS, STOP, STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.errors import HdtrainError, ManifestError
from hdtrain.formats.atomic import remove_temporaries
from hdtrain.formats.claims import Claims
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import sidecar_path
from hdtrain.progress import Progress

FIRST_PAUSE_SEC, POLL_SEC = 0.01, 1.0
"""Between two looks at what others are making: the first pause, and the longest."""
TELL_SEC = 0.2
PUBLISH = "publish"
"""Name of the claim on publishing."""


class PublishedError(HdtrainError):
    """Another process has published: there is nothing left to do here. `SharedRun.open` ends without an error."""


@dataclass(frozen=True)
class SharedUnit:
    """A piece of work that leaves files."""

    name: str
    """Of its claim: good as a file's name, unique in the run."""
    images: int
    """For the progress display."""
    files: tuple[Path, ...] = ()
    """It is there when all of these are"""
    check: Callable[[], bool] | None = None
    """and this says so."""

    @property
    def is_there(self) -> bool:
        """Whether somebody has made it."""
        return all(path.exists() for path in self.files) and (self.check is None or self.check())


def shard_unit(tar: Path, images: int) -> SharedUnit:
    """A shard and its sidecar."""
    return SharedUnit(tar.name, images, (tar, sidecar_path(tar)))


@dataclass
class _Step:
    """Units that are made together."""

    units: Sequence[SharedUnit]
    done: set[int] = field(default_factory=set)
    """Numbers of those that are there, as far as this process knows."""
    images: int = 0
    """Made by this process."""
    unit_images: int = 0
    """Of the unit at hand."""
    unit_size: int = 0
    """Images that it is to have."""
    started: float = field(default_factory=time.monotonic)

    def images_done(self) -> int:
        """By anybody."""
        return sum(self.units[number].images for number in self.done)

    def look(self) -> None:
        """Which are there, in one look at each folder."""
        folders = {path.parent for unit in self.units for path in unit.files}
        names = {folder: _names(folder) for folder in folders}
        for number, unit in enumerate(self.units):
            if all(path.name in names[path.parent] for path in unit.files) and (not unit.check or unit.check()):
                self.done.add(number)


@dataclass
class SharedRun:
    """This process among all that work on a run; they need not have been started together."""

    run: RunDir
    """Its manifest ends the work."""
    world: World
    """This process's place in its own job."""
    claims: Claims
    """Of this process, open."""
    fingerprint: str = ""
    """Of the manifest; empty: any manifest ends the work."""
    prefix: str = ""
    """Of the names of its claims."""
    begun_ns: int = 0
    """When this attempt was prepared, by the file system's clock."""
    _step: _Step = field(default_factory=lambda: _Step([]))
    _progress: Progress | None = None
    _publishes: bool = False
    _unsaid: int = 0
    """Images that are done and not told."""
    _told: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def open(cls, run: RunDir, world: World, fingerprint: str = "", *, at_once: bool = True) -> Iterator["SharedRun"]:
        """Work on a run until it is published.

        What fails because another has published meanwhile, and cleared up, is no failure. The claims go once there is a
        manifest.

        Args:
            run: the run directory.
            world: this process's place in its job.
            fingerprint: of the run.
            at_once: SIGTERM and its like end the process where it is; else `make_all` and `saw` look for them.

        Raises:
            SystemExit: with code 3, when a signal asked for it; what was not finished is given back.
        """
        with _signals(at_once):
            try:
                with Claims(run.claims, world.rank) as claims:
                    shared = cls(run, world, claims, fingerprint, begun_ns=_changed_ns(run.config))
                    with shared.until_published():
                        yield shared
            except SystemExit as stop:
                if stop.code == STOPPED_EXIT_CODE and STOP.is_set:
                    print("stopped by a signal; what is finished stays, and the same command continues")
                raise
            finally:
                if run.manifest.exists():
                    shutil.rmtree(run.claims, ignore_errors=True)

    def below(self, run: RunDir, prefix: str) -> "SharedRun":
        """The same process at work on a data set below the run, which has a manifest of its own."""
        return replace(self, run=run, prefix=f"{prefix}-", _step=_Step([]), _publishes=False)

    @property
    def writer(self) -> str:
        """For the temporary names of what this process writes."""
        return self.claims.token

    @property
    def published(self) -> bool:
        """Whether the run is done."""
        if not self.run.manifest.exists():
            return False
        try:
            return not self.fingerprint or read_manifest(self.run.path).fingerprint == self.fingerprint
        except ManifestError:
            return False

    @contextlib.contextmanager
    def until_published(self) -> Iterator[None]:
        """A block that ends, without an error, when another has published."""
        try:
            yield
        except (HdtrainError, OSError):
            if self._publishes or not self.published:
                raise

    def make_all(
        self,
        title: str,
        units: Sequence[SharedUnit],
        make: Callable[[int, Any], None],
        fetch: Callable[[Sequence[int]], Iterable[tuple[int, Any]]] | None = None,
    ) -> None:
        """Return when every unit is there, whoever made it.

        Args:
            title: of the progress display.
            units: all of them, in the same order in every process.
            make: publishes the files of a unit, from its number and what `fetch` gave for it; may call `saw`.
            fetch: gives units' input, ahead of its use where that pays; None: there is none.

        Raises:
            PublishedError: the run is done.
            SystemExit: as `open`.
        """
        if self.published:
            raise PublishedError(f"{self.run.path} is published")
        mine = set(range(self.world.rank, len(units), self.world.size))
        order = sorted(range(len(units)), key=lambda number: (number not in mine, number))
        self._step = step = _Step(units)
        step.look()
        pause, total = FIRST_PAUSE_SEC, sum(unit.images for unit in units)
        self.claims.tell(
            step=title,
            step_number=self.claims.state.step_number + 1,
            makes_shards=any(path.parent == self.run.shards for unit in units[:1] for path in unit.files),
            total_images=total,
            whole_images=step.images_done(),
        )
        self.claims.say()
        shown = self.world.is_main and total > 0
        with Progress(title, total, done=step.images_done(), enabled=shown) as self._progress:
            while left := [number for number in order if not self._is_done(number)]:
                pairs = fetch(left) if fetch else zip(left, itertools.repeat(None), strict=False)
                if sum(self._make(number, given, make) for number, given in pairs):
                    pause = FIRST_PAUSE_SEC
                    continue
                pause = self._rest(pause)  # others have what is left
        self.claims.tell(whole_images=total)

    def saw(self, images: int) -> None:
        """So many more images of the unit at hand are done.

        Raises:
            SystemExit: as `open`; not after the last image, so that the unit is published first.
        """
        self._step.images += images
        self._step.unit_images += images
        self._unsaid += images
        if self._progress:
            self._progress.update(images)
        if time.monotonic() - self._told > TELL_SEC:
            self._tell()
        if self._step.unit_images < self._step.unit_size:
            self.check_stop()

    def found(self, images: int) -> None:
        """So many images of the unit at hand were there: an earlier attempt made them."""
        self._step.unit_images += images
        if self._progress:
            self._progress.update(images)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        self.claims.tell(
            unit_images=self._step.unit_images,
            images=self.claims.state.images + self._unsaid,
            images_per_sec=self._step.images / max(now - self._step.started, 1e-9),
        )
        self._unsaid, self._told = 0, now

    def publishes(self, *folders: Path) -> bool:
        """Whether it falls to this process to publish; what killed writers left in `folders` is removed then.

        The main ranks of all jobs come into question: one of them does it, the others wait, and take over if that one
        dies. On other ranks False, at once.
        """
        if not self.world.is_main:
            return False
        pause = FIRST_PAUSE_SEC
        while not self.published:
            with contextlib.suppress(FileNotFoundError):  # it is published, and the claims are gone
                if self.claims.take(self.prefix + PUBLISH) and not self.published:
                    for folder in folders:
                        remove_temporaries(folder)
                    self._publishes = True
                    return True
            pause = self._rest(pause)
        return False

    def await_published(self) -> None:
        """Return when somebody has published."""
        pause = FIRST_PAUSE_SEC
        while not self.published:
            pause = self._rest(pause)

    def _rest(self, pause: float) -> float:
        self.check_stop()
        time.sleep(pause)
        return min(1.5 * pause, POLL_SEC)

    def check_stop(self) -> None:
        """Leave if a signal asked for it."""
        if STOP.is_set:
            raise SystemExit(STOPPED_EXIT_CODE)

    def _is_done(self, number: int) -> bool:
        step = self._step
        if number not in step.done and step.units[number].is_there:  # another has made it
            step.done.add(number)
            if self._progress:
                self._progress.update(step.units[number].images)
        return number in step.done

    def _make(self, number: int, given: Any, make: Callable[[int, Any], None]) -> bool:
        """Whether this process made the unit."""
        step = self._step
        unit, name = step.units[number], self.prefix + step.units[number].name
        self.check_stop()
        if self._is_done(number) or not self.claims.take(name):
            return False
        try:
            if self._is_done(number):  # done and given back between the look and the claim
                return False
            if self.published:
                raise PublishedError(f"{self.run.path} is published")
            step.unit_images, step.unit_size = 0, unit.images
            self.claims.tell(unit=name, unit_images=0)
            try:
                make(number, given)
            except FileNotFoundError:
                if not unit.is_there:
                    raise  # else another, who took this process for dead, has made it and cleared up
            step.done.add(number)
            self.saw(max(0, unit.images - step.unit_images))
        finally:
            self.claims.release(name)
            step.unit_images = step.unit_size = 0
            self._tell()
            self.claims.tell(unit="", whole_images=step.images_done())
        return True


@contextlib.contextmanager
def _signals(at_once: bool) -> Iterator[None]:
    """How this process hears a signal that asks it to leave."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not at_once:
        STOP.install()
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        if not STOP.is_set:
            STOP.number = number
            raise SystemExit(STOPPED_EXIT_CODE)
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return set()


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
