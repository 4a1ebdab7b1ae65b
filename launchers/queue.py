"""What a queue of jobs can do: SLURM, or subprocesses of this machine."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from hdtrain.formats.job_state import JobState
from hdtrain.formats.submission import Job, Submission, SubmissionDir

NOT_NOW = "Requested node configuration is not available"
"""SLURM's words for nodes that are down, and for such as it has none."""


class Queue(Protocol):
    """A queue that takes jobs."""

    def check(self) -> None:
        """Raise HdtrainError if it cannot be used here."""

    def script(self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]) -> str:
        """What `submit` would send, for people to read."""

    def refusals(self, place: SubmissionDir, submission: Submission, groups: Iterable[Sequence[Job]]) -> dict[str, str]:
        """Job to why the cluster, as it is now, would not take or never begin it. Nothing is sent.

        Raises:
            HdtrainError: it cannot be asked.
        """

    def submit(
        self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]
    ) -> list[list[str]]:
        """Send one job, or several as one array, to wait for the jobs `after`; the ids of each, one an element."""

    def states(self, ids: Iterable[str]) -> dict[str, JobState]:
        """Of the jobs that the queue still knows."""

    def cancel(self, ids: Iterable[str], now: bool = False) -> None:
        """Let running jobs save and end, and take waiting ones out; `now`: with half a minute to save at most."""


def queue_of(kind: str) -> Queue:
    """`slurm` or `local`."""
    if kind == "slurm":
        from launchers.slurm import SlurmQueue

        return SlurmQueue()
    from launchers.local_queue import LocalQueue

    return LocalQueue()
