"""Child processes: what they are given, how they are started, who their children are."""

import contextlib
import os
import subprocess
from functools import partial
from pathlib import Path

from hdtrain.distributed.processes import die_with_parent


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there, without importing torch."""
    return Path("/proc/driver/nvidia").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def environment() -> dict[str, str]:
    """For children. Without a GPU deepspeed is told so: its own search guesses wrong where a toolkit is."""
    accelerator = {} if has_gpu() else {"DS_ACCELERATOR": "cpu"}
    return {"PYTHONUNBUFFERED": "1", **accelerator, **os.environ}


def start(
    command: list[str],
    environment: dict[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a child that dies with this process and hears the terminal's signals through us alone."""
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def children(parent: int) -> list[int]:
    """Pids of a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = stat.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent:
                found.append(int(stat.parent.name))
    return found
