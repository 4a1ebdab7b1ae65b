"""What `hdtrain launch` sent to a queue: `FOLDER/.launch/NNN/`, beside the run directories that the jobs fill.

    submission.json   the jobs, what each waits for, what it asked for, its id in the queue
    code/             the packages as they were, and a job imports nothing else of hdtrain
    configs/JOB.yaml  resolved; a job reads no other
    jobs/JOB/         what the queue and the job write: logs, attempts, the reason of a failure

A folder is never used again: a retry is a submission of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.config.cluster import ClusterConfig, Resources
from hdtrain.errors import ManifestError
from hdtrain.formats.versioned import VersionedFile

FOLDER = ".launch"


class Job(Config):
    """One job of a submission; an array is one job with several elements."""

    name: str
    """Of the recipe's node, or of the run directory."""
    stage: str
    directory: Path
    """The run directory."""
    after: list[str] = Field(default_factory=list)
    """Names of jobs of this submission that must have ended well before."""
    after_ids: list[str] = Field(default_factory=list)
    """The same of jobs of an earlier submission, by their ids in the queue."""
    resources: Resources
    elements: int = 1
    array: str | None = None
    """Jobs of the same word here are the elements of one array: a sweep."""
    ids: list[str] = Field(default_factory=list)
    """In the queue, one an element; empty: not submitted yet."""


class Submission(VersionedFile):
    """The whole file."""

    STAGE = "launch"
    WHAT = "submission"
    version: int = 1
    queue: Literal["slurm", "local"]
    name: str
    """Of the recipe, or of the run."""
    folder: Path
    """Of the run directories."""
    command: list[str]
    """As it was typed."""
    user: str
    host: str
    time: float
    """Unix seconds."""
    commit: str
    retry_of: str | None = None
    profile: ClusterConfig
    sweep: dict[str, dict[str, Any]] | None = None
    """Job to the values of a sweep's keys."""
    jobs: list[Job]

    def job(self, name: str) -> Job:
        """By name."""
        return next(job for job in self.jobs if job.name == name)


class SubmissionDir:
    """The names inside a submission's folder."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def file(self) -> Path:
        """`submission.json`."""
        return self.path / "submission.json"

    @property
    def code(self) -> Path:
        """The packages; goes first on the jobs' PYTHONPATH."""
        return self.path / "code"

    def config(self, job: str) -> Path:
        """Resolved, of one job."""
        return self.path / "configs" / f"{job}.yaml"

    def job(self, name: str) -> Path:
        """Where the queue and the job write."""
        return self.path / "jobs" / name

    def attempts(self, job: str) -> Path:
        """One JSON object a line, written as an attempt begins and as it ends."""
        return self.job(job) / "attempts.jsonl"

    def cancelled(self, job: str) -> Path:
        """There: the job was cancelled, and must not be requeued."""
        return self.job(job) / "cancelled"

    def requeue(self, job_id: str) -> Path:
        """There: this attempt has saved, and wants to go on in another."""
        return self.path / "requeue" / job_id

    def failed(self, job_id: str, restarts: int) -> Path:
        """There: a rank of this attempt failed for good; the others, which are told to end, must not requeue it."""
        return self.path / "requeue" / f"{job_id}-{restarts}-failed"

    def outcome(self, job: str, job_id: str, restarts: int) -> Path:
        """Where the first rank to fail says why (`hdtrain.distributed.outcome`)."""
        return self.job(job) / f"outcome-{job_id}-{restarts}.json"

    @property
    def bad_nodes(self) -> Path:
        """Nodes that failed the health check, one a line."""
        return self.path / "bad_nodes"

    def read(self) -> Submission:
        """The submission.

        Raises:
            ManifestError: missing, or of another version.
        """
        return Submission.read(self.file)

    def write(self, submission: Submission) -> None:
        """Atomically."""
        submission.write(self.file)


def submissions(folder: Path) -> list[SubmissionDir]:
    """Those into a folder of run directories, oldest first; what cannot be read is left out."""
    found = [SubmissionDir(path) for path in sorted((folder / FOLDER).glob("[0-9]*")) if path.is_dir()]
    return [one for one in found if one.file.exists()]


def new_submission_dir(folder: Path) -> SubmissionDir:
    """An empty folder with the next number. Two that ask in one moment get two."""
    parent = folder / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in parent.glob("[0-9]*") if path.name.isdecimal()), default=0) + 1
    while True:
        try:
            (parent / f"{number:03d}").mkdir()
            return SubmissionDir(parent / f"{number:03d}")
        except FileExistsError:
            number += 1


def read_submissions(folder: Path) -> Iterator[tuple[SubmissionDir, Submission]]:
    """Those that can be read, oldest first."""
    for place in submissions(folder):
        try:
            yield place, place.read()
        except (ManifestError, ValueError):
            continue


def newest_jobs(folder: Path) -> dict[str, tuple[SubmissionDir, Submission, Job]]:
    """Of every run directory in `folder` the job that was submitted last, by name."""
    found: dict[str, tuple[SubmissionDir, Submission, Job]] = {}
    for place, submission in read_submissions(folder):
        found |= {job.name: (place, submission, job) for job in submission.jobs}
    return found


def read_attempts(place: SubmissionDir, job: str) -> list[dict[str, Any]]:
    """What the job wrote down of its attempts, oldest first; a line cut off is left out."""
    return list(_lines(place.attempts(job)))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
