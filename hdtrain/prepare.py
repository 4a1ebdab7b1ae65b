"""One stage in one run directory: is it done, does something else lie there, lock it, write its config, run it.

The recipe and the single-stage command both go through `run_node`. Nothing is ever deleted: a directory that holds
another run is renamed to `NAME.previous-<its fingerprint>`; of one that made nothing the logs stay where they are.
"""

import contextlib
import fcntl
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

import yaml

from hdtrain.config.base import Config, InputTree, references
from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.errors import ConfigError, HdtrainError, ManifestError
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.fingerprint import fingerprint, missing_raw_data, read_parents
from hdtrain.formats.manifest import Manifest, check_present, read_manifest
from hdtrain.formats.provenance import read_run_json, record_prepared
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.weights_store import resolve_named_weights

ConfigT = TypeVar("ConfigT", bound=Config)
_POLL_SEC, _SAY_EVERY_SEC = 0.2, 30.0
_JOINED = "-joined"
_JOIN_PATIENCE_SEC = 20.0
"""How long a job that would join waits for the first one to make the run directory ready."""
_READ_WHOLE = ("autoencoder", "denoiser", "classifier", "prior", "grids", "statistics")
"""Kinds of parents whose files a stage compares with their hashes before it uses them."""
_DOING = {"done": "skip, done", "to do": "running"}


class Launcher(Protocol):
    """Whatever runs a prepared stage."""

    def run_stage(self, stage: str, run_dir: Path, ranks: int) -> int:
        """Run it on `ranks` processes and return its exit code."""


@dataclass(frozen=True)
class State:
    """What a run directory holds, compared with what is asked for."""

    status: Literal["done", "to do", "half done", "changed"]
    fingerprint: str
    """Of the run that is asked for."""
    aside: Path | None = None
    """Where the other run that lies there goes."""
    earlier: Path | None = None
    """A run of this very fingerprint that was moved aside before: it comes back and is done, or goes on."""

    def __str__(self) -> str:
        if self.status == "half done":
            return "half done: it goes on"
        back = f"{self.earlier.name} comes back" if self.earlier else ""
        moved = f"the old run moves to {self.aside.name}" if self.aside else ""
        both = ", ".join(filter(None, [moved, back]))
        return f"changed: {both}" if both else self.status


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; `code` is the exit code of its process."""

    status: Literal["done", "skipped", "stopped", "failed"]
    code: int
    seconds: float


def resolve(model: type[ConfigT], tree: Mapping[str, Any], source: str) -> ConfigT:
    """`tree` as a complete config: defaults filled in, every path absolute (taken from the working directory).

    `weights:NAME` becomes the path of the file in the store of weights.

    Raises:
        ConfigError: every mistake in it.
    """
    config = validate(model, tree, source)
    return validate(model, _absolute(config.model_dump(), resolve_named_weights(config, source)), source)


def _absolute(value: Any, named: Mapping[str, Path]) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(item, named) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute(item, named) for item in value]
    return str(named.get(str(value)) or value.expanduser().absolute()) if isinstance(value, Path) else value


def inspect(stage: str, config: Config, directory: Path, source: str) -> State:
    """Compare a run directory with what is asked for; its parents must be published.

    Raises:
        ConfigError: a parent is not published, or a weights file is missing.
        ManifestError: the parents do not fit each other, as far as their manifests tell; or a file of one is missing,
            and the run is not done.
        HdtrainError: the directory holds files that are no run's.
    """
    parents = read_parents(config, source)
    state = _compare(stage, config, directory, source, parents)
    if state.status != "done":
        for path, manifest in parents.values():
            if manifest.kind in _READ_WHOLE:
                check_present(path, manifest)
    return state


def _compare(
    stage: str, config: Config, directory: Path, source: str, parents: dict[str, tuple[Path, Manifest]]
) -> State:
    run = RunDir(directory)
    _check_place(directory, config, parents)
    if STAGES[stage].check:
        manifests = dict(parents.values())
        importlib.import_module(STAGES[stage].check).check(config, manifests.__getitem__)
    missing = missing_raw_data(config)
    if missing and run.manifest.exists():
        wanted = fingerprint(stage, config, parents, raw_data=False)
        if wanted == read_run_json(run).get("fingerprint_without_raw_data"):  # packed, and then removed to save room
            return State("done", read_manifest(directory).fingerprint)
    if missing:
        raise ConfigError(source, missing)
    wanted = fingerprint(stage, config, parents)
    there = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.exists() else []
    if not there:
        return State("to do", wanted, earlier=_earlier(directory, wanted))
    if not (run.run_json.exists() or run.manifest.exists()):
        raise HdtrainError(
            f"{directory} is not a run directory: it holds {', '.join(sorted(there)[:3])} and no {run.run_json.name}; "
            "give --out a new or an empty folder"
        )
    old = str(read_run_json(run).get("fingerprint", "unknown"))
    published = run.manifest.exists()
    if published:
        with contextlib.suppress(ManifestError):
            old = read_manifest(directory).fingerprint
            if old == wanted:
                return State("done", wanted)
    elif old == wanted:
        return State("half done", wanted)
    earlier = _earlier(directory, wanted)
    if not (published or earlier or _has_made_something(run)):
        return State("to do", wanted)
    return State("changed", wanted, _free_name(directory, old[:8]), earlier)


def _has_made_something(run: RunDir) -> bool:
    """Whether there is anything but logs: where an attempt failed at once, the next one's log comes beside its own."""
    others = set(run.path.iterdir()) - {run.config, run.run_json, run.logs}
    return any(found.is_file() for path in others for found in (path, *path.rglob("*")))


def _earlier(directory: Path, wanted: str) -> Path | None:
    """A run of fingerprint `wanted` that was moved aside; a published one rather than one half done."""
    found = [
        path
        for path in sorted(directory.parent.glob(f"{directory.name}.previous-{wanted[:8]}*"))
        if read_run_json(RunDir(path)).get("fingerprint") == wanted
    ]
    return max(found, key=lambda path: RunDir(path).manifest.exists(), default=None)


def _check_place(directory: Path, config: Config, parents: Mapping[str, tuple[Path, Manifest]]) -> None:
    """Raise HdtrainError if the stage would write over what it reads."""
    for dotted, (path, _) in parents.items():
        if path.absolute().is_relative_to(directory.absolute()):
            raise HdtrainError(f"{directory} holds the stage's own parent {dotted} ({path}); give --out another folder")
    for reference in references(config):
        if isinstance(reference.marker, InputTree) and directory.absolute().is_relative_to(reference.path.absolute()):
            raise HdtrainError(
                f"{directory} lies in the raw data of {reference.dotted} ({reference.path}); give --out another folder"
            )
    if directory.exists() and not directory.is_dir():
        raise HdtrainError(f"{directory} is a file; give --out a new or an empty folder")


def _published(directory: Path, wanted: str) -> bool:
    with contextlib.suppress(ManifestError):
        return read_manifest(directory).fingerprint == wanted
    return False


def _free_name(directory: Path, old: str) -> Path:
    name, count = directory.with_name(f"{directory.name}.previous-{old}"), 1
    while name.exists():
        count += 1
        name = directory.with_name(f"{directory.name}.previous-{old}-{count}")
    return name


def prepare(stage: str, config: Config, directory: Path, state: State) -> None:
    """Make `directory` ready for its process: another run moved aside, fingerprint and resolved config written."""
    _swap(directory, state)
    run = RunDir(directory)
    without_raw_data = fingerprint(stage, config, read_parents(config, str(run.config)), raw_data=False)
    record_prepared(run, stage, state.fingerprint, without_raw_data)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_bytes(run.config, text.encode())


def _swap(directory: Path, state: State) -> None:
    """Another run out of the way, an earlier one of this fingerprint back in its place."""
    if state.aside:
        directory.rename(state.aside)
    if state.earlier:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
        state.earlier.rename(directory)


class InUseError(HdtrainError):
    """Another process holds the run directory."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; the lock ends with the process, however that ends.

    Raises:
        InUseError: another process holds it.
    """
    with _lock(directory, fcntl.LOCK_EX) as stream:
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


@contextlib.contextmanager
def _lock(directory: Path, how: int, suffix: str = "") -> Iterator[IO[str]]:
    """The open lock file. Those that join a run share one of their own (`-joined`)."""
    path = directory.parent / f".lock-{directory.name}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise HdtrainError(
            f"{directory} cannot be made: {error.strerror}: {error.filename}; give another --out"
        ) from None
    with file as stream:
        try:
            fcntl.flock(stream, how | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = f"process {number}" if (number := stream.read().strip()) else "another job"
            raise InUseError(f"{directory} is in use by {holder}; wait for it, or give --out another folder") from None
        except OSError as error:
            raise HdtrainError(
                f"{path} cannot be locked: {error.strerror}; the file system must have flock (Lustre: mount -o flock)"
            ) from None
        yield stream


def await_prepared(stage: str, config: Config, directory: Path, source: str, again: bool = False) -> State:
    """On a machine other than the first: wait until that one has made the run directory ready.

    Args:
        stage: its name.
        config: as `resolve` gives it.
        directory: the run directory.
        source: where the config came from, for messages.
        again: the first machine runs it although it is done, so what is published there is not the end.

    Returns:
        `done` if there is nothing to do, else `to do`.
    """
    run, said = RunDir(directory), time.monotonic()
    wanted = fingerprint(stage, config, read_parents(config, source), raw_data=False)
    while True:
        record = read_run_json(run)
        if record.get("fingerprint_without_raw_data") == wanted and run.config.exists():
            if not run.manifest.exists():
                return State("to do", str(record["fingerprint"]))
            state = inspect(stage, config, directory, source)
            if state.status == "done" and not again:
                return state
        time.sleep(_POLL_SEC)
        if time.monotonic() - said > _SAY_EVERY_SEC:
            said = time.monotonic()
            print(f"waiting for the first machine (--machine 0/…) to begin in {directory}", file=sys.stderr)


def run_node(
    stage: str,
    config: Config,
    directory: Path,
    *,
    ranks: int,
    launcher: Launcher,
    source: str,
    say: Callable[[str], None] = print,
    again: bool = False,
) -> Outcome:
    """Bring one run directory to its published state, or say how far it came.

    Args:
        stage: its name.
        config: as `resolve` gives it.
        directory: the run directory.
        ranks: processes, for stages that use torch.
        launcher: runs the prepared directory.
        source: where the config came from, for messages.
        say: takes one line for people.
        again: run it although it is done.
    """
    _check_place(directory, config, read_parents(config, source))  # before a lock is left there
    try:
        with locked(directory):
            return _run_held(stage, config, directory, ranks, launcher, source, say, again)
    except InUseError:
        if not STAGES[stage].shared:
            raise
    return _join(stage, config, directory, ranks, launcher, source, say)


def _run_held(
    stage: str,
    config: Config,
    directory: Path,
    ranks: int,
    launcher: Launcher,
    source: str,
    say: Callable[[str], None],
    again: bool,
) -> Outcome:
    """`run_node` with the run directory locked."""
    state = inspect(stage, config, directory, source)
    if state.status == "done" and again:
        RunDir(directory).manifest.unlink()
        state = State("to do", state.fingerprint)
    say(f"── {directory.name} ({stage}): {_DOING.get(state.status, state)}")
    if state.status == "done":
        return Outcome("skipped", 0, 0.0)
    nobody_else: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if STAGES[stage].shared and state.status != "half done":  # a job that joined may still be at work there
        nobody_else = _lock(directory, fcntl.LOCK_EX, _JOINED)
    with nobody_else:
        if state.earlier and RunDir(state.earlier).manifest.exists():
            _swap(directory, state)
            return Outcome("skipped", 0, 0.0)
        prepare(stage, config, directory, state)
    return _run_prepared(stage, directory, ranks, launcher, state.fingerprint)


def _join(
    stage: str,
    config: Config,
    directory: Path,
    ranks: int,
    launcher: Launcher,
    source: str,
    say: Callable[[str], None],
) -> Outcome:
    """Help the job that holds the run directory, if it makes what is asked for.

    Raises:
        InUseError: it makes something else.
    """
    wanted, until = fingerprint(stage, config, read_parents(config, source)), time.monotonic() + _JOIN_PATIENCE_SEC
    with contextlib.ExitStack() as held:
        while not _signed_in(held, directory, wanted):
            if time.monotonic() > until:
                raise InUseError(
                    f"{directory} is in use by a job that makes something else there; wait for it, or give --out "
                    "another folder"
                )
            time.sleep(_POLL_SEC)
        if _published(directory, wanted):
            say(f"── {directory.name} ({stage}): skip, done")
            return Outcome("skipped", 0, 0.0)
        say(f"── {directory.name} ({stage}): another job is at work there; helping it")
        return _run_prepared(stage, directory, ranks, launcher, wanted)


def _signed_in(held: contextlib.ExitStack, directory: Path, wanted: str) -> bool:
    """Whether the run directory is ready, and kept as it is by this job's share in the lock of those that join.

    A job that waits has no share yet: the first one, which must be alone to make the directory ready, would not be.
    """
    run = RunDir(directory)
    if not _ready(run, wanted):
        return False
    try:
        held.enter_context(_lock(directory, fcntl.LOCK_SH, _JOINED))
    except InUseError:  # the first job is making it ready at this moment
        return False
    if _ready(run, wanted):
        return True
    held.close()
    return False


def _ready(run: RunDir, wanted: str) -> bool:
    return read_run_json(run).get("fingerprint") == wanted and run.config.exists()


def _run_prepared(stage: str, directory: Path, ranks: int, launcher: Launcher, wanted: str) -> Outcome:
    started = time.monotonic()
    code = launcher.run_stage(stage, directory, ranks)
    seconds = time.monotonic() - started
    if code == 0 and not _published(directory, wanted):
        raise HdtrainError(f"{stage} ended well but published no manifest in {directory}: this is a bug of {stage}")
    status = {0: "done", STOPPED_EXIT_CODE: "stopped"}.get(code, "failed")
    return Outcome(status, code, seconds)  # type: ignore[arg-type]
