"""`hdtrain logs`: what a run printed.

    hdtrain logs RUN|FOLDER [--follow] [--rank N] [--lines N]

Of a folder the run that failed last, else one that runs. The log of the newest attempt; where the stage has not begun,
what the queue kept of rank 0.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hdtrain.errors import HdtrainError
from hdtrain.formats.submission import read_attempts
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_jobs import Found
from hdtrain.reporting.status_logs import age_key, attempt_logs, rank_logs, ranks_with_logs
from launchers.overview import Overview, overview

POLL_SEC, LOOK_SEC = 0.5, 10.0
"""While following: so often files are read, so often it is asked whether more will come."""
_ORDER = (("failed", "killed"), ("hung", "running"), ("waiting", "stopped"))
_BLOCK_BYTES = 1 << 16


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain logs`."""
    command.add_argument("path", type=Path, metavar="RUN|FOLDER", help="a run directory, or a recipe's folder")
    command.add_argument("--follow", action="store_true", help="go on until the run has ended")
    command.add_argument("--rank", type=_whole, metavar="N", help="what the queue kept of this rank")
    command.add_argument("--lines", type=_whole, default=50, metavar="N", help="the last N (default: 50; 0: all)")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got '{text}'")
    return int(text)


def logs(args: argparse.Namespace) -> int:
    """Print the end of the log, and what is added to it."""
    found = overview([args.path])
    for line in found.warnings:
        print(line, file=sys.stderr)
    run = _choose(found)
    if args.follow:
        files, status = _await_files(run, args.rank)
    else:
        files, status = _files(run, found.status(run), args.rank), found.status(run)
    _head(run, files[0], status, args.rank)
    ends: dict[Path, int] = {}
    for file in files:
        if len(files) > 1:
            print(f"==> {file} <==", flush=True)
        ends[file] = _print_end(file, args.lines)
    return _follow(run, args.rank, ends) if args.follow else 0


def _await_files(run: Found, rank: int | None) -> tuple[list[Path], Status]:
    """As `_files`, as soon as a run that still waits has printed something; and how far it is then."""
    said = ""
    while True:
        told = overview([run.path])
        status = told.status(told.runs.asked[0])
        try:
            return _files(run, status, rank), status
        except HdtrainError:
            if status.state not in ("waiting", "not begun", "running") or run.submitted is None:
                raise
        if _state(status) != said:
            said = _state(status)
            print(f"{run.path} has printed nothing yet ({said})", file=sys.stderr, flush=True)
        time.sleep(LOOK_SEC / 5)


def _choose(found: Overview) -> Found:
    """Of several runs the one that failed last, else one that runs, else the one that printed last."""
    runs = found.runs.asked
    if len(runs) == 1:
        return runs[0]
    for states in _ORDER:
        some = [one for one in runs if found.status(one).state in states and _newest(one)]
        if some:
            return max(some, key=_newest)
    return max(runs, key=_newest)


def _newest(run: Found) -> float:
    """When it printed last."""
    told = run.submitted
    kept = rank_logs(told.place, told.job, 0) if told else []
    return max((age_key(path) for path in [*kept, *attempt_logs(run.path)]), default=0.0)


def _files(run: Found, status: Status, rank: int | None) -> list[Path]:
    """The file, or a rank's stdout and stderr.

    Raises:
        HdtrainError: nothing was printed yet, or there is no such rank.
    """
    told = run.submitted
    if rank is not None:
        if told is None:
            raise HdtrainError(f"{run.path}: no logs of single ranks: it was not submitted by `hdtrain launch`")
        kept = rank_logs(told.place, told.job, rank)
        if not kept:
            count = ranks_with_logs(told.place, told.job)
            there = f"there are those of ranks 0 to {count - 1}" if count else _state(status)
            raise HdtrainError(f"{run.path}: rank {rank} has printed nothing; {there}")
        newest = kept[-1].name.rpartition(".")[0]
        return sorted((path for path in kept if path.name.rpartition(".")[0] == newest), reverse=True)
    own = attempt_logs(run.path)
    own = [path for path in own if path.stat().st_size] or own
    if told is None:
        if not own:
            raise HdtrainError(f"{run.path} has printed nothing yet ({_state(status)})")
        return own[-1:]
    attempts = [one for one in read_attempts(told.place, told.job.name) if one.get("event") == "begin"]
    began = max((float(one.get("time", 0)) for one in attempts), default=told.submission.time)
    kept = [path for path in rank_logs(told.place, told.job, 0) if path.stat().st_size]
    if own and (age_key(own[-1]) >= began - 1 or not kept):
        return own[-1:]
    if not kept:
        raise HdtrainError(f"{run.path} has printed nothing yet ({_state(status)})")
    return sorted(kept, key=lambda path: path.suffix == ".err")[-1:]


def _state(status: Status) -> str:
    return f"{status.state}{f': {status.detail}' if status.detail else ''}"


def _head(run: Found, file: Path, status: Status, rank: int | None) -> None:
    """Which log this is, on stderr: stdout has the log alone."""
    earlier = [path.name for path in attempt_logs(run.path) if path.name != file.name]
    earlier += [path.name for path in sorted(run.path.absolute().parent.glob(f"{run.name}.previous-*"))]
    others = f"; earlier attempts: {', '.join(earlier)}" if earlier and rank is None else ""
    print(f"{file} ({_state(status)}){others}", file=sys.stderr, flush=True)


def _print_end(file: Path, count: int) -> int:
    """Print the last lines and say where they ended, in bytes."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        start, found = size, b""
        while start and (not count or found.count(b"\n") <= count):
            start = max(0, start - _BLOCK_BYTES) if count else 0
            stream.seek(start)
            found = stream.read(size - start)
        lines = found.splitlines(keepends=True)
        _write(b"".join(lines[-count:] if count else lines))
    return size


def _write(data: bytes) -> None:
    if data:
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()


def _follow(run: Found, rank: int | None, ends: dict[Path, int]) -> int:
    """Print what comes, from attempt to attempt, until no more will."""
    looked = time.monotonic()
    while True:
        for file in _now(run, rank, ends):
            if file not in ends:
                ends[file] = 0
                print(f"==> {file} <==", flush=True)
            ends[file] += _print_from(file, ends[file])
        if time.monotonic() - looked > LOOK_SEC:
            looked = time.monotonic()
            told = overview([run.path])
            status = told.status(told.runs.asked[0])
            if not (status.state in ("running", "hung", "waiting", "not begun") or (status.job and status.job.active)):
                for file in list(ends):
                    _print_from(file, ends[file])
                print(f"{run.path}: {_state(status)}", file=sys.stderr)
                return 0
        time.sleep(POLL_SEC)


def _now(run: Found, rank: int | None, ends: dict[Path, int]) -> Iterator[Path]:
    """The files that are followed: those so far, and newer ones."""
    yield from ends
    newer: Sequence[Path] = attempt_logs(run.path)
    if rank is not None and run.submitted:
        newer = rank_logs(run.submitted.place, run.submitted.job, rank)
    newest = max((age_key(file) for file in ends), default=0.0)
    yield from [file for file in newer if file not in ends and age_key(file) > newest]


def _print_from(file: Path, start: int) -> int:
    """What was added since, in bytes."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            data = stream.read()
    except OSError:
        return 0
    _write(data)
    return len(data)
