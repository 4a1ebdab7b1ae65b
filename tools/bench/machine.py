"""On what, when and with which versions a benchmark ran."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def cpu_model() -> str:
    """The processor's name as Linux knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(packages: Sequence[str]) -> dict[str, object]:
    """Hardware, versions, date and command; `load` is the average number of running processes over the last minute."""
    tar = subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "linux": platform.release(),
            "tar": tar.stdout.splitlines()[0],
            **{package: version(package) for package in packages},
        },
    }
