"""How a run came about: commit, versions, host, command, times. Kept in `run.json`, outside every hash."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

from hdtrain.formats.atomic import write_json
from hdtrain.formats.heartbeats import GONE, process_state
from hdtrain.formats.run_dir import RunDir

PACKAGES = ("torch", "deepspeed", "diffusers", "timm", "webdataset", "numpy", "pillow", "simplejpeg")


@cache
def git_commit() -> str:
    """Commit of the code that runs, `+` for uncommitted changes: HDTRAIN_COMMIT, or its checkout's, or `unknown`."""
    if told := os.environ.get("HDTRAIN_COMMIT"):  # a submission's code lies in somebody else's checkout, if in any
        return told
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return head.strip() + ("+" if dirty.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_run_json(run: RunDir) -> dict[str, Any]:
    """The run's record, or an empty one."""
    try:
        record: dict[str, Any] = json.loads(run.run_json.read_bytes())
        return record
    except (OSError, ValueError):
        return {}


def record_prepared(run: RunDir, stage: str, fingerprint: str, without_raw_data: str) -> None:
    """Mark a run directory as this fingerprint's before anything else is written there."""
    marks = {"stage": stage, "fingerprint": fingerprint, "fingerprint_without_raw_data": without_raw_data}
    _write(run, {**read_run_json(run), **marks})


def record_start(run: RunDir, stage: str, fingerprint: str, ranks: int) -> None:
    """Add an attempt to `run.json`."""
    record = read_run_json(run)
    attempt = {"started": time.time(), "ranks": ranks, "pid": os.getpid(), "host": socket.gethostname()}
    attempts = [*record.get("attempts", []), attempt]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    _write(
        run,
        {
            **record,
            "stage": stage,
            "fingerprint": fingerprint,
            "commit": git_commit(),
            "versions": {"python": platform.python_version(), **versions},
            "host": socket.gethostname(),
            "cpus": os.cpu_count(),
            "attempts": attempts,
        },
    )


def record_end(run: RunDir, status: str) -> None:
    """Close this process's attempt: `status` is done, failed or stopped.

    Of two jobs that begin or end in one moment one may write over what the other wrote: then that attempt is not there.
    """
    record, here = read_run_json(run), (socket.gethostname(), os.getpid())
    own = [each for each in record.get("attempts", []) if (each.get("host"), each.get("pid")) == here]
    if own:
        own[-1] |= {"ended": time.time(), "status": status}
        _write(run, record)


def record_interrupted(run: RunDir) -> bool:
    """Close an attempt of this host whose process a signal has ended: it is stopped. False: there is none."""
    record, here = read_run_json(run), socket.gethostname()
    last = record.get("attempts", [{}])[-1]
    if last.get("host") != here or "ended" in last or process_state(int(last["pid"])) != GONE:
        return False
    last |= {"ended": time.time(), "status": "stopped"}
    _write(run, record)
    return True


def _write(run: RunDir, record: dict[str, Any]) -> None:
    """The jobs that share a run may do so in one moment."""
    write_json(run.run_json, record, f"{socket.gethostname()}-{os.getpid()}")
