"""How far runs and jobs are: the files and the queues together. One question a queue, for all of its jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdtrain.errors import HdtrainError
from hdtrain.formats.job_state import JobState
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_job import Answers
from hdtrain.reporting.status_jobs import Found, Runs, find_jobs
from hdtrain.reporting.status_judge import Judge, ids_to_ask
from launchers.queue import queue_of


@dataclass
class Overview:
    """Of all runs that were asked for."""

    runs: Runs
    judge: Judge
    answers: Answers
    warnings: list[str]

    @property
    def statuses(self) -> list[Status]:
        """In the order of `runs.asked`."""
        return self.judge.statuses()

    def status(self, found: Found) -> Status:
        """Of one run, asked for or around it."""
        return self.judge.status(found)


def overview(paths: Sequence[Path], around: bool = False) -> Overview:
    """All that is known of runs, or of the runs in folders.

    Args:
        paths: run directories, folders of them, and run directories that jobs will make.
        around: ask the queues about other runs in their folders too.

    Raises:
        HdtrainError: a path leads to no run and to no job.
    """
    runs = find_jobs(paths)
    answers, warnings = ask(ids_to_ask(runs, around))
    return Overview(runs, Judge(runs, answers), answers, warnings)


def ask(wanted: Mapping[str, set[str]]) -> tuple[Answers, list[str]]:
    """What each queue says of the ids; a line for each that cannot be asked."""
    elements: dict[str, JobState] = {}
    unreachable, warnings = set(), []
    for kind, ids in wanted.items():
        if not ids:
            continue
        try:
            elements |= queue_of(kind).states(ids)
        except HdtrainError as error:
            unreachable.add(kind)
            warnings.append(f"warning: the queue ({kind}) cannot be asked, so this is what the files tell: {error}")
    return Answers(elements, frozenset(unreachable)), warnings
