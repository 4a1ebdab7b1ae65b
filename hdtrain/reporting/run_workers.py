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


def where(workers: Sequence[WorkerState]) -> str:
    """`3 workers: 2 on node1, 1 on node2`."""
    hosts = Counter(worker.host for worker in workers)
    count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
    return f"{count}: {', '.join(f'{hosts[host]} on {host}' for host in sorted(hosts))}"


def shared_progress(run: RunDir, config: dict[str, Any], workers: Sequence[WorkerState]) -> Progress:
    """Of all jobs together: whole shards, and what the workers have of theirs."""
    total = max((worker.total_images for worker in workers), default=0)
    whole = sum(entry.name.endswith(".tar") and entry.name[0] != "." for entry in _entries(run))
    a_shard = int(number(config.get("samples_per_shard")) or 0)
    done = whole * a_shard if a_shard else max((worker.whole_images for worker in workers), default=0)
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
