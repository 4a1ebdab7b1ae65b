"""A rank that hangs is noticed and named with its stack, and the run ends instead of burning hours. No torch here.

Every rank calls `beat(step, phase)` at the same places of the loop: attributes are set, nothing else. A daemon thread
in each writes `heartbeats/rank-00003.json` every few seconds: step, phase, the stacks of its threads.

All ranks make the same steps together, so one that hangs makes all others wait. A run hangs when *no* rank has made a
beat for the whole time-out; as long as one still makes beats nothing happens. To blame is the rank that gives no sign
of life any more (its file doesn't change: process stopped, node gone, interpreter blocked), else the one that has come
least far in (step, beats at this step).

Files are read only by a rank that has stood still for half the time-out, so a healthy run of a thousand ranks writes a
few small files a second and reads none. Rank 0 judges first; rank 1 two intervals later, if rank 0 is the one that
hangs; and so on. Whether a file changes is seen with the reader's own monotonic clock, never from the times in it.
"""

import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from hdtrain.distributed.hang_report import hang_report
from hdtrain.distributed.outcome import tell_outcome
from hdtrain.distributed.world import World
from hdtrain.formats.heartbeats import (
    Heartbeat,
    ThreadStack,
    clear,
    dump_path,
    heartbeat_path,
    parse_heartbeat,
    read_bytes,
    write_heartbeat,
)

BEFORE = "beginning"
INTERVAL_SEC, FILES_A_SEC = 10.0, 10
"""Seconds between two words of a rank; longer where all ranks together would write more files a second than this."""
TURNS = 16
"""The ranks that judge one after the other, two intervals apart; the rest judges with the last of them."""
MAIN_FRAMES, OTHER_FRAMES = 15, 8
_OUTER_CALLS = ("_bootstrap (", "_bootstrap_inner (", "run (", "_worker (")
"""What every thread's stack begins with, in the standard library."""
_IDLE = re.compile(r"get \(.*\bqueue\.py:")
"""A thread that waits for work from a queue."""
LAST_WORDS_SEC = 10.0
"""The report may take so long, where a terminal or a file server doesn't answer either."""


@dataclass
class Seen:
    """What this rank saw of another one's file."""

    content: bytes
    changed: float
    """When it was new, by this rank's monotonic clock."""
    heartbeat: Heartbeat | None = None

    def idle_sec(self, now: float) -> float:
        """For how long at least it has made no beat."""
        return (self.heartbeat.idle_sec if self.heartbeat else 0.0) + now - self.changed


class Watchdog:
    """`with Watchdog(…) as watchdog:` around a loop, and `watchdog.beat(step, phase)` in it.

    Args:
        folder: of the heartbeat files, on a disk that all ranks share.
        world: this rank's place.
        timeout_sec: without a beat of any rank for so long, the run ends with exit code 1. On a shared file system two
            minutes at least: its clients may see a file a minute late.
        title: of the run, for the message.
        checkpoints: folder of the checkpoints, for the message.
    """

    def __init__(
        self, folder: Path, world: World, *, timeout_sec: float, title: str, checkpoints: Path | None = None
    ) -> None:
        self.folder, self.world, self.timeout_sec = folder, world, timeout_sec
        self.title, self.checkpoints = title, checkpoints
        self.interval_sec = min(max(INTERVAL_SEC, world.size / FILES_A_SEC), timeout_sec / 8)
        self.silent_sec = timeout_sec / 2 - 1.5 * self.interval_sec
        """A rank gives no sign of life when its file stays the same so long: it is watched for half the time-out."""
        self.write_failures = 0
        self._place = (0, BEFORE, 0, time.monotonic(), time.time())
        self._awake = time.monotonic()
        """Since when this process has run without having been suspended."""
        self._seen: dict[int, Seen] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._main = threading.current_thread()

    def beat(self, step: int, phase: str) -> None:
        """This rank has come on: it now does `phase` of step `step`. Every rank must call it at the same places."""
        number = self._place[2] + 1 if step == self._place[0] else 1
        self._place = (step, phase, number, time.monotonic(), time.time())

    def __enter__(self) -> "Watchdog":
        self._main = threading.current_thread()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world.is_main:
            clear(self.folder, self.world.size)
        self._dump = dump_path(self.folder, self.world.rank).open("w")
        self._awake = self._tick = time.monotonic()
        self._place = (0, BEFORE, 0, self._awake, time.time())
        faulthandler.register(signal.SIGALRM, self._dump, all_threads=False)
        self._write()
        self._dump_later(self._dump)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self.interval_sec)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        self._dump.close()
        dump_path(self.folder, self.world.rank).unlink(missing_ok=True)
        self._write(left=True)

    def _watch(self) -> None:
        while not self._ended.wait(self.interval_sec):
            now = time.monotonic()
            if now - self._tick > self.timeout_sec / 2:  # this process was suspended, and perhaps all ranks were
                self._awake = now
            self._tick = now
            self._write()
            self._dump_later(self._dump)
            self._judge(now)

    def _dump_later(self, file: IO[str]) -> None:
        """Let C code write the main thread's stack, should this thread not come round again: the interpreter is held.

        By a signal to the main thread, which stands still while it writes. `faulthandler.dump_traceback_later` would
        walk the stacks of threads that run, as they do when a suspended job wakes up, and crash the process.
        """
        file.seek(0)
        file.truncate()
        signal.setitimer(signal.ITIMER_REAL, 0.8 * self.silent_sec)

    def _write(self, left: bool = False) -> None:
        try:
            write_heartbeat(self.folder, self._heartbeat(left))
        except OSError as error:  # a full disk must not end a run that has nothing to save
            self.write_failures += 1
            if self.write_failures == 1:
                print(f"warning: heartbeats cannot be written: {error}; hung ranks show later", file=sys.stderr)

    def _heartbeat(self, left: bool = False) -> Heartbeat:
        step, phase, number, _, beat_time = self._place
        return Heartbeat(
            rank=self.world.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=step,
            phase=phase,
            beat=number,
            beat_time=beat_time,
            idle_sec=self._idle_sec(time.monotonic()),
            written=time.time(),
            interval_sec=self.interval_sec,
            timeout_sec=self.timeout_sec,
            left=left,
            threads=[] if left else thread_stacks(self._main),
        )

    def _idle_sec(self, now: float) -> float:
        return now - max(self._place[3], self._awake)

    def _judge(self, now: float) -> None:
        """End the run if nobody comes on."""
        idle = self._idle_sec(now)
        if idle < self.timeout_sec / 2:
            self._seen.clear()
            return
        self._look(now)
        turn = 2 * self.interval_sec * min(self.world.rank, TURNS)
        if idle >= self.timeout_sec + turn and not any(self._comes_on(rank, now) for rank in self._seen):
            self._end(now)

    def _look(self, now: float) -> None:
        for rank in range(self.world.size):
            content = b"" if rank == self.world.rank else read_bytes(heartbeat_path(self.folder, rank))
            if rank != self.world.rank and (rank not in self._seen or self._seen[rank].content != content):
                self._seen[rank] = Seen(content, now, parse_heartbeat(content))

    def _silent(self, rank: int, now: float) -> bool:
        return now - self._seen[rank].changed >= self.silent_sec

    def _comes_on(self, rank: int, now: float) -> bool:
        """Whether a rank lives and has made a beat within the time-out."""
        seen = self._seen[rank]
        gone = seen.heartbeat is None or seen.heartbeat.left
        return not (gone or self._silent(rank, now)) and seen.idle_sec(now) < self.timeout_sec

    def _end(self, now: float) -> None:
        """Report, and take the process down; the launcher ends the others."""
        mine = self._heartbeat()
        threading.Timer(LAST_WORDS_SEC, os._exit, (1,)).start()
        others = {rank: seen.heartbeat for rank, seen in self._seen.items()}
        silent = {rank: now - self._seen[rank].changed for rank in self._seen if self._silent(rank, now)}
        report = hang_report(
            f"{self.title}: no rank has come on for {self._idle_sec(now):.0f} s (engine.hang_timeout_sec is "
            f"{self.timeout_sec:g})",
            {**others, mine.rank: mine},
            silent,
            self.folder,
            self.checkpoints,
        )
        faulthandler.dump_traceback(2)
        tell_outcome(1, report)
        os._exit(1)


def thread_stacks(main: threading.Thread) -> list[ThreadStack]:
    """Where the Python threads of this process stand, the main one first, without the one that asks.

    Source files are not read: their disk may be what hangs. Threads that wait for work are left out.
    """
    frames = sys._current_frames()
    found = []
    for thread in sorted(threading.enumerate(), key=lambda thread: (thread is not main, thread.name)):
        if thread.ident not in frames or thread is threading.current_thread():
            continue
        calls = list(traceback.walk_stack(frames[thread.ident]))[: MAIN_FRAMES if thread is main else OTHER_FRAMES]
        lines = [f"{f.f_code.co_name} ({f.f_code.co_filename}:{number})" for f, number in calls]
        if thread is not main:
            while lines and lines[-1].startswith(_OUTER_CALLS):
                lines.pop()
            if any(_IDLE.match(line) for line in lines[:2]):
                continue
        if lines:
            found.append(ThreadStack(name=thread.name, frames=lines[::-1]))
    return found
