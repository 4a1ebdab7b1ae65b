"""When to stop before the end: a signal came, or the job's time is nearly up. All ranks then save, and leave with 3.

A rank's *votes* are one number a reason, 1 where it has that reason, else 0. The loop sums them over the ranks in the
all-reduce that it makes at every step anyway, and `stop_reason` says what the sums mean: the same on every rank. No
torch here.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from hdtrain.errors import ConfigError

STOPPED_EXIT_CODE = 3
"""A stage that saved before its end leaves with this; the same command continues."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Requests to save and leave. In `votes` they come in this order, and the deadline comes last."""
NUM_REASONS = len(SIGNALS) + 1

END_VARIABLES = ("HDTRAIN_JOB_END_TIME", "SLURM_JOB_END_TIME")
"""Unix seconds; the first that is set counts. SLURM sets its own since 23.02, when the job starts."""

SAVE_FACTOR, STEP_FACTOR = 2.0, 3.0
"""A save may take twice as long as the longest so far; the step in progress and two more may come before it."""
MARGIN_SEC = 30.0
"""For what is neither: leaving the process group, the launcher's own steps, clocks that differ by seconds."""
FIRST_SAVE_SEC = 45.0
"""What the first save is taken to cost before there was one: 4.4 GB (the state of `ldm4`) at 100 MB/s."""


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT, for the rest of the process. A second SIGINT stops at once."""

    number = 0
    """The first signal that came; 0: none."""

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.number != 0

    def install(self) -> None:
        """Take over the signals; a flag that is set already stays set."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def votes(self, deadline_reached: bool = False) -> list[float]:
        """This rank's reasons to stop, `NUM_REASONS` numbers to sum over the ranks: 1.0 where it has that reason."""
        return [*(float(self.number == number) for number in SIGNALS), float(deadline_reached)]


STOP = StopFlag()
"""The process's one flag: a signal between two seeds' trainings must not be lost."""


@dataclass(frozen=True)
class Deadline:
    """When the job ends, if that is known."""

    end_sec: float | None = None
    """Unix seconds; None: no end is known, and none is ever near."""

    @classmethod
    def from_environment(cls) -> "Deadline":
        """The job's end, from HDTRAIN_JOB_END_TIME or else SLURM_JOB_END_TIME.

        Raises:
            ConfigError: it is no time in unix seconds, or one that has passed.
        """
        name = next((name for name in END_VARIABLES if os.environ.get(name)), None)
        if name is None:
            return cls()
        text = os.environ[name]
        if not text.isdecimal():
            problem = f"expected the job's end in unix seconds, such as {time.time() + 3600:.0f}, got '{text}'"
            raise ConfigError("environment", [f"{name}: {problem}; correct it or unset it"])
        if int(text) <= time.time():
            problem = f"the job's end, {text} ({_clock(int(text))}), has passed; is it another job's?"
            raise ConfigError(
                "environment", [f"{name}: {problem} Unset it, or set HDTRAIN_JOB_END_TIME to the real one"]
            )
        return cls(float(text))

    def reached(self, save_sec: float, step_sec: float) -> bool:
        """Whether it is time to save and leave.

        Args:
            save_sec: the longest save so far; 0 before the first, which is then taken to cost `FIRST_SAVE_SEC`.
            step_sec: one step.
        """
        if self.end_sec is None:
            return False
        needed = SAVE_FACTOR * (save_sec or FIRST_SAVE_SEC) + STEP_FACTOR * step_sec + MARGIN_SEC
        return self.end_sec - time.time() < needed

    def __str__(self) -> str:
        return f"the job ends at {_clock(self.end_sec)}" if self.end_sec else "the job's end is not known"


def stop_reason(votes: Sequence[float], deadline: Deadline) -> str:
    """Why to stop: `by SIGTERM` or `because the job ends at 14:30`, to follow the word "stopped"; empty: go on.

    Args:
        votes: summed over the ranks. Of several reasons the first counts.
        deadline: of the job.
    """
    for number, count in zip(SIGNALS, votes, strict=False):
        if count:
            return f"by {number.name}"
    return f"because {deadline}" if votes[len(SIGNALS)] else ""


def _clock(unix_sec: float) -> str:
    """`14:30`, with the date where that isn't today's; in local time."""
    moment, today = time.localtime(unix_sec), time.localtime()
    return time.strftime("%H:%M" if moment[:3] == today[:3] else "%Y-%m-%d %H:%M", moment)
