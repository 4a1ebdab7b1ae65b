"""How far a run is that several jobs share, from what its workers say and from the shards that are there. No torch."""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hdtrain.formats.claims import INTERVAL_SEC, WorkerState, read_workers
from hdtrain.formats.heartbeats import GONE, process_state
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.run_progress import Progress
from hdtrain.reporting.run_state import CLOCK_SLACK_SEC, STALE_INTERVALS
from hdtrain.reporting.tail import number


def live_workers(run: RunDir, now: float) -> list[WorkerState]:
    """Those that have said something lately and, on this host, whose process is there."""
    return [worker for worker in read_workers(run.claims) if _lives(worker, now)]


def _lives(worker: WorkerState, now: float) -> bool:
    if worker.host == socket.gethostname():
        return process_state(worker.pid) != GONE
    return now - worker.written < STALE_INTERVALS * INTERVAL_SEC + CLOCK_SLACK_SEC


def where(workers: Sequence[WorkerState], stage: str = "") -> str:
    """`3 workers: 2 on node1, 1 on node2`, and at which of the stage's steps they are."""
    hosts = Counter(worker.host for worker in workers)
    count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
    steps = {worker.step.removeprefix(f"{stage}: ") for worker in _furthest(workers)} - {"", stage}
    at = f"; {', '.join(sorted(steps))}" if steps else ""
    return f"{count}: {', '.join(f'{hosts[host]} on {host}' for host in sorted(hosts))}{at}"


def _furthest(workers: Sequence[WorkerState]) -> list[WorkerState]:
    """Those at the step that is furthest on: the others look through what is done already."""
    last = max((worker.step_number for worker in workers), default=0)
    return [worker for worker in workers if worker.step_number == last]


def shared_progress(run: RunDir, config: dict[str, Any], workers: Sequence[WorkerState]) -> Progress:
    """Of all jobs together, at the step that they are at: whole units, and what the workers have of theirs."""
    workers = _furthest(workers)
    total = max((worker.total_images for worker in workers), default=0)
    a_shard = int(number(config.get("samples_per_shard")) or 0)
    if a_shard and any(worker.makes_shards for worker in workers):
        done = a_shard * sum(entry.name.endswith(".tar") and entry.name[0] != "." for entry in _entries(run))
    else:
        done = max((worker.whole_images for worker in workers), default=0)
    images = done + sum(each.unit_images for each in workers)
    return Progress(
        images=min(images, total) if total else images,
        total_images=total or None,
        images_per_sec=sum(worker.images_per_sec for worker in workers) or None,
    )


def _entries(run: RunDir) -> list["os.DirEntry[str]"]:
    try:
        return list(os.scandir(run.shards))
    except OSError:
        return []
