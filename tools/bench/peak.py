"""The largest memory of a command and its children while it runs, or of this process, as Linux tells it."""

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_SEC = 0.3
_KIB = 1024


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    seconds: float
    peak_process_bytes: int
    """Resident memory of the largest process; files that it has mapped count, as far as they are in memory."""
    peak_tree_bytes: int
    """Of all its processes together, what they share counted once (proportional set size)."""


def run_watched(command: list[str], environment: dict[str, str]) -> Ran:
    """Run a command to its end; its output goes where this process's goes.

    Raises:
        CalledProcessError: it left with another code than 0.
    """
    started, largest, together = time.monotonic(), 0, 0
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            found = [_memory(pid) for pid in _tree(process.pid)]
            largest = max([largest, *(rss for rss, _ in found)])
            together = max(together, sum(pss for _, pss in found))
            time.sleep(EVERY_SEC)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Ran(time.monotonic() - started, largest, together)


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Resident and proportional set size in bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines[1:]}
    return int(sizes.get("Rss", 0)) * _KIB, int(sizes.get("Pss", 0)) * _KIB


class OwnPeak:
    """The largest anonymous memory of this process (tensors, heap) in the `with` block, looked at 50 times a second.

    Not `VmHWM`, the system's own peak: it counts the pages of libraries as they are first touched, 150 MB of them in
    torch, and those are the kernel's to take back.
    """

    bytes = 0

    def __enter__(self) -> "OwnPeak":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.bytes = max(self.bytes, _KIB * int(status.partition("RssAnon:")[2].split(maxsplit=1)[0]))
            if self._ended.wait(0.02):
                return
