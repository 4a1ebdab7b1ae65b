"""How far a run is: read from its run directory alone, from any machine that sees it, at any moment. No torch.

Files may be half written, missing or damaged; what cannot be read is left out. Of `metrics.jsonl` and of the log only
the ends are read, since they may be large.
"""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hdtrain.errors import HdtrainError
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.run_progress import Progress, read_progress, together
from hdtrain.reporting.run_state import State, run_state
from hdtrain.reporting.run_workers import live_workers, shared_progress, where
from hdtrain.reporting.status_job import JobStatus
from hdtrain.reporting.status_painting import Painting, read_painting
from hdtrain.reporting.tail import number, tail

_TELLING = re.compile(r"^(error: |[\w.]*(Error|Exception|Interrupt)\b)|: stopped (by|because) ")


@dataclass
class Status:
    """What is known of one run."""

    path: str
    stage: str
    state: State
    detail: str = ""
    """Where it runs, or what is wrong."""
    ranks: int | None = None
    running_sec: float | None = None
    seconds_left: float | None = None
    progress: Progress | None = None
    """Of a training (of one with several seeds, all of them together, with the figures of the newest) or a sampling."""
    seeds: dict[str, Progress] = field(default_factory=dict)
    painting: Painting | None = None
    """Of one that is not published."""
    shards: int | None = None
    """Written so far, by a stage that writes shards."""
    message: str | None = None
    """The error, or the reason to stop, in the log's words."""
    log: str | None = None
    job: JobStatus | None = None
    """Where the run was submitted to a queue."""
    sweep: dict[str, Any] | None = None
    """Of a run of a sweep: the values of its keys."""
    validation: dict[str, float] | None = None
    """Of a run of a sweep: the last value of every figure on held-out data, of several seeds the mean."""
    best: bool | None = None
    """Of a run of a sweep: whether its first validation figure, a loss, is the lowest."""

    def tree(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories among `paths` and, of other folders, the ones in them, oldest first.

    Raises:
        HdtrainError: a path is no folder, or holds no run.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            raise HdtrainError(f"{path}: no such folder; expected a run directory, or a folder of run directories")
        if is_run(path):
            found.append(path)
            continue
        inside = [child for child in path.iterdir() if is_run(child) and ".previous-" not in child.name]
        if not inside:
            raise HdtrainError(f"{path} is no run directory and holds none: nothing was begun there")
        found += sorted(inside, key=lambda child: (_begun(child), child.name))
    return found


def is_run(path: Path) -> bool:
    """Whether a folder has the marks of a run directory."""
    run = RunDir(path)
    return not path.name.startswith(".") and any(f.exists() for f in (run.run_json, run.config, run.manifest))


def _begun(path: Path) -> float:
    attempts = _attempts(_record(RunDir(path)))
    return number(attempts[0].get("started")) or math.inf if attempts else math.inf


def read_status(path: Path, now: float | None = None) -> Status:
    """All that is known of one run directory; `now` is unix seconds."""
    try:
        return _read(RunDir(path), time.time() if now is None else now)
    except OSError as error:  # no permission, or it was moved away in this moment
        return Status(str(path), "unknown", "unknown", f"cannot be read: {error.strerror}: {error.filename}")


def _read(run: RunDir, now: float) -> Status:
    record, config = _record(run), _config(run)
    attempts = _attempts(record)
    state, detail = run_state(run, record, attempts, now)
    status = Status(str(run.path), str(record.get("stage", "unknown")), state, detail)
    last = attempts[-1] if attempts else {}
    status.ranks = int(number(last.get("ranks")) or 0) or None
    started = number(last.get("started"))
    if state in ("running", "hung") and started:
        status.running_sec = max(0.0, now - started)
    if "duration" in config:
        _add_progress(status, run, config, now)
    elif workers := [] if state == "published" else live_workers(run, now):
        status.state, status.detail, status.ranks = "running", where(workers, status.stage), None
        status.progress = shared_progress(run, config, workers)
        _add_time_left(status)
    elif status.stage == "paint" and state != "published" and (painting := read_painting(run, now)):
        status.painting = painting
        status.seconds_left = painting.seconds_left if state == "running" else None
    if run.shards.is_dir():
        status.shards = sum(entry.name.endswith(".json") for entry in os.scandir(run.shards))
    if state in ("hung", "stopped", "failed", "killed"):
        status.message, status.log = _last_words(run)
    return status


def _record(run: RunDir) -> dict[str, Any]:
    record = read_run_json(run)
    return record if isinstance(record, dict) else {}


def _attempts(record: dict[str, Any]) -> list[dict[str, Any]]:
    attempts = record.get("attempts")
    return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []


def _config(run: RunDir) -> dict[str, Any]:
    try:
        tree = yaml.load(run.config.read_text(errors="replace"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _add_progress(status: Status, run: RunDir, config: dict[str, Any], now: float) -> None:
    """Of the run, or of its seeds and their sum."""
    seeds = config.get("seeds")
    if not isinstance(seeds, list):
        status.progress = read_progress(run, config, now)
    else:
        parts = {str(seed): read_progress(run.seed(seed), config, now) for seed in seeds if isinstance(seed, int)}
        status.seeds = {seed: part for seed, part in parts.items() if part.row_age_sec is not None}
        status.progress = together(list(parts.values()))
    _add_time_left(status)


def _add_time_left(status: Status) -> None:
    done = status.progress
    if done and status.state == "running" and done.total_images and done.images_per_sec:
        status.seconds_left = (done.total_images - done.images) / done.images_per_sec


def _last_words(run: RunDir) -> tuple[str | None, str | None]:
    """What the newest log says last of why the run ended; and the log."""
    logs = sorted(run.logs.glob("*.log"))
    return (last_words(logs[-1]), str(logs[-1])) if logs else (None, None)


def last_words(log: Path) -> str | None:
    """A log's last line that tells why the run ended, else its last line."""
    lines = [line.strip() for line in tail(log) if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines
    return telling[-1] if telling else None
