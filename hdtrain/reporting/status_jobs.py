"""The runs that a command names, with their newest jobs; those whose run directory is not there yet too. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdtrain.errors import HdtrainError
from hdtrain.formats.submission import FOLDER, Job, Submission, SubmissionDir, read_submissions
from hdtrain.reporting.status import find_runs, is_run


@dataclass(frozen=True)
class Submitted:
    """A run's newest job."""

    place: SubmissionDir
    submission: Submission
    job: Job
    parents: tuple[str, ...]
    """Runs of the same folder that it was to wait for."""

    @property
    def sweep(self) -> dict[str, Any] | None:
        """The values of a sweep's keys, where it is one."""
        return (self.submission.sweep or {}).get(self.job.name)


@dataclass(eq=False)
class Found:
    """A run directory, there or still to come."""

    path: Path
    """As it was given; for people."""
    submitted: Submitted | None = None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.absolute().name

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of runs in the same folder."""
        return self.submitted.parents if self.submitted else ()


@dataclass
class Runs:
    """What the paths of a command line lead to."""

    asked: list[Found]
    """In order: of a folder parents before their children."""
    around: dict[Path, dict[str, Found]] = field(default_factory=dict)
    """Folder to everything in it that was submitted, by name; absolute."""

    def family(self, found: Found) -> dict[str, Found]:
        """What was submitted into the same folder."""
        return self.around.get(found.path.absolute().parent, {})

    def families(self) -> list[dict[str, Found]]:
        """Of all runs that were asked for, each folder once."""
        return [self.around.get(folder, {}) for folder in {one.path.absolute().parent: None for one in self.asked}]


def find_jobs(paths: Sequence[Path]) -> Runs:
    """The runs among `paths` and in folders among them.

    Raises:
        HdtrainError: a path is no folder and no job's, or holds no run and no job.
    """
    runs = Runs([])
    for path in paths:
        own = _submitted(path.absolute().parent, runs)
        if path.absolute().name in own and (is_run(path) or not (path / FOLDER).is_dir()):
            runs.asked.append(Found(path, own[path.absolute().name].submitted))
        elif path.is_dir() and is_run(path):
            runs.asked.append(Found(path))
        else:
            runs.asked += _of_folder(path, runs)
    return runs


def _of_folder(path: Path, runs: Runs) -> list[Found]:
    """Runs that were never submitted, in the order of their beginning, then the jobs."""
    jobs = _submitted(path.absolute(), runs)
    try:
        there = find_runs([path])
    except HdtrainError:
        if not jobs:
            raise
        there = []
    alone = [Found(run) for run in there if run.name not in jobs]
    return [*alone, *(Found(path / found.name, found.submitted) for found in in_order(jobs))]


def _submitted(folder: Path, runs: Runs) -> dict[str, Found]:
    """The newest job of every run directory in a folder, by name."""
    if folder in runs.around:
        return runs.around[folder]
    newest: dict[str, tuple[SubmissionDir, Submission, Job]] = {}
    names: dict[str, str] = {}
    for place, submission in read_submissions(folder):
        newest |= {job.name: (place, submission, job) for job in submission.jobs}
        names |= {one: job.name for job in submission.jobs for one in job.ids}
    found = {}
    for name, (place, submission, job) in newest.items():
        parents = dict.fromkeys([*job.after, *(names[one] for one in job.after_ids if one in names)])
        found[name] = Found(folder / name, Submitted(place, submission, job, tuple(parents)))
    runs.around[folder] = found
    return found


def in_order(jobs: dict[str, Found]) -> Iterator[Found]:
    """Parents before their children, otherwise as they were submitted."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[Found]:
        if name in done or name not in jobs:
            return
        done.add(name)
        for parent in jobs[name].parents:
            yield from visit(parent)
        yield jobs[name]

    for name in jobs:
        yield from visit(name)
