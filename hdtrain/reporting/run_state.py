"""Whether a run runs: from `run.json`, its heartbeats, and the process where that is of this host. No torch."""

import math
import os
import re
import socket
from pathlib import Path
from typing import Any, Literal

from hdtrain.formats.heartbeats import GONE, Heartbeat, process_state, read_heartbeats
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.tail import number

State = Literal[
    "published", "running", "hung", "stopped", "failed", "killed", "not begun", "unknown",
    "waiting", "cancelled", "will not run",
]  # fmt: skip
"""The last three come from a queue (`status_judge`)."""
STALE_INTERVALS, CLOCK_SLACK_SEC = 3, 15.0
"""A rank gives no sign of life when its heartbeat is older than so many of its intervals, and clocks may differ."""
STANDSTILL = 0.1
"""The share of the time-out from which on a standstill is worth a remark."""
QUIET_SEC = 600.0
"""A run on another host without heartbeats is taken to run while its log is younger than this."""
_ENDED: dict[str, tuple[State, str]] = {"stopped": ("stopped", ""), "failed": ("failed", "")}


def run_state(run: RunDir, record: dict[str, Any], attempts: list[dict[str, Any]], now: float) -> tuple[State, str]:
    """What the run does, and where, or what is odd about it."""
    if run.manifest.exists():
        return "published", ""
    if not attempts:
        return "not begun", ""
    last = attempts[-1]
    if "ended" in last:
        return _ENDED.get(str(last.get("status")), ("unknown", "ended, and nothing is published"))
    return _without_end(run, record, last, now)


def _without_end(run: RunDir, record: dict[str, Any], last: dict[str, Any], now: float) -> tuple[State, str]:
    """Of an attempt that has not recorded its end: it runs, hangs, or was killed."""
    started = number(last.get("started")) or now
    host, pid = str(record.get("host", "?")), int(number(last.get("pid")) or 0)
    where = f"process {pid} on {host}"
    found = [beat for part in (run, *run.seeds) for beat in read_heartbeats(part.heartbeats)]
    beats = [beat for beat in found if not beat.left and beat.written > started - CLOCK_SLACK_SEC]
    silent = [beat for beat in beats if now - beat.written > STALE_INTERVALS * beat.interval_sec + CLOCK_SLACK_SEC]
    here = host == socket.gethostname()
    if here and not _is_process_of(pid, started):
        return "killed", f"{where} is gone"
    if silent:
        return "hung", _silence(silent, len(beats), now)
    if beats or here or _log_age(run, now) < QUIET_SEC:
        return "running", where + _standstill(beats, now)
    return "unknown", f"was begun as {where}; nothing is heard of it"


def _is_process_of(pid: int, started: float) -> bool:
    """Whether the process that began an attempt still lives: `pid` may have become another one's since."""
    state = process_state(pid)
    if state == GONE or state.startswith("dead"):
        return False
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = int(re.findall(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[0])
    except (OSError, IndexError, ValueError):
        return False
    return boot + ticks / os.sysconf("SC_CLK_TCK") < started + CLOCK_SLACK_SEC


def _silence(silent: list[Heartbeat], count: int, now: float) -> str:
    first = silent[0]
    others = f" and {len(silent) - 1} more of {count}" if len(silent) > 1 else ""
    state = process_state(first.pid) if first.host == socket.gethostname() else ""
    since = f"no sign of life for {now - first.written:.0f} s"
    process = f"process {first.pid} on {first.host}{f', {state}' if state else ''}"
    return f"rank {first.rank}{others}: {since}, at step {first.step}, {first.phase} ({process})"


def _standstill(beats: list[Heartbeat], now: float) -> str:
    """A remark where every rank lives and none has come on for long."""
    last = max(beats, key=lambda beat: beat.beat_time, default=None)
    if last is None or now - last.beat_time < STANDSTILL * last.timeout_sec:
        return ""
    first = min(beats, key=lambda beat: (beat.step, beat.beat))
    sign = f"rank {first.rank} is at step {first.step}, {first.phase}"
    return f", where no rank has come on for {now - last.beat_time:.0f} s: {sign}"


def _log_age(run: RunDir, now: float) -> float:
    times = [path.stat().st_mtime for path in run.logs.glob("*.log")] if run.logs.is_dir() else []
    return now - max(times, default=-math.inf)
