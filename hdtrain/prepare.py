"""One stage in one run directory: lock it, move aside what else lies there, write its config, run it.

The recipe and the single-stage command both go through `run_node`.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

import yaml

from hdtrain.config.base import Config
from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.fingerprint import fingerprint, read_parents
from hdtrain.formats.provenance import read_run_json, record_prepared
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.weights_store import resolve_named_weights
from hdtrain.run_state import State, check_place, inspect, published

ConfigT = TypeVar("ConfigT", bound=Config)
_POLL_SEC, _SAY_EVERY_SEC = 0.2, 30.0
_JOINED = "-joined"
_JOIN_PATIENCE_SEC = 20.0
"""How long a job that would join waits for the first one to make the run directory ready."""
_DOING = {"done": "skip, done", "to do": "running"}


class Launcher(Protocol):
    """Whatever runs a prepared stage."""

    def run_stage(self, stage: str, run_dir: Path, ranks: int) -> int:
        """Run it on `ranks` processes and return its exit code."""


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
    check_place(directory, config, read_parents(config, source))  # before a lock is left there
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
        if published(directory, wanted):
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
    if code == 0 and not published(directory, wanted):
        raise HdtrainError(f"{stage} ended well but published no manifest in {directory}: this is a bug of {stage}")
    status = {0: "done", STOPPED_EXIT_CODE: "stopped"}.get(code, "failed")
    return Outcome(status, code, seconds)  # type: ignore[arg-type]
