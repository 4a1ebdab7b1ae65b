"""Planned jobs to a queue: a folder with code, configs and the record, then one job after the other, parents first."""

import getpass
import itertools
import shutil
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hdtrain.config.base import Config
from hdtrain.config.cluster import ClusterConfig
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.provenance import git_commit
from hdtrain.formats.submission import Job, Submission, SubmissionDir, new_submission_dir
from launchers.queue import Queue

PACKAGES = ("hdtrain", "sharding", "launchers")
"""They lie side by side."""


def describe(
    name: str, folder: Path, profile: ClusterConfig, jobs: Sequence[Job], command: Sequence[str], **more: Any
) -> Submission:
    """The record of a submission that begins now."""
    return Submission(
        queue=profile.kind,
        name=name,
        folder=folder,
        command=list(command),
        user=getpass.getuser(),
        host=socket.gethostname(),
        time=time.time(),
        commit=git_commit(),
        profile=profile,
        jobs=list(jobs),
        **more,
    )


def open_submission(submission: Submission, configs: Mapping[str, Config]) -> SubmissionDir:
    """A new folder with the code as it is now, the configs of all jobs, and the record."""
    place = new_submission_dir(submission.folder)
    for package in PACKAGES:
        source = Path(__file__).parents[1] / package
        shutil.copytree(source, place.code / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    for name, config in configs.items():
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_bytes(place.config(name), text.encode())
    place.write(submission)
    return place


def reopen_submission(submission: Submission, earlier: SubmissionDir) -> SubmissionDir:
    """A new folder with the code and the configs of an earlier submission."""
    place = new_submission_dir(submission.folder)
    shutil.copytree(earlier.code, place.code, ignore=shutil.ignore_patterns("__pycache__"))
    for job in submission.jobs:
        write_bytes(place.config(job.name), earlier.config(job.name).read_bytes())
    place.write(submission)
    return place


def submit(place: SubmissionDir, submission: Submission, queue: Queue) -> Submission:
    """Send every job; the record follows each.

    Raises:
        HdtrainError: the queue refused one; those sent before it are taken back, and the record is removed.
    """
    for group in groups(submission.jobs):
        after = [*group[0].after_ids, *(i for name in group[0].after for i in submission.job(name).ids)]
        try:
            ids = queue.submit(place, submission, group, after)
        except HdtrainError:
            sent = [i for job in submission.jobs for i in job.ids]
            if sent:
                queue.cancel(sent)
            place.file.unlink()  # nothing of it is in a queue, so nobody asks for it
            raise
        by_name = {job.name: own for job, own in zip(group, ids, strict=True)}
        jobs = [job.model_copy(update={"ids": by_name.get(job.name, job.ids)}) for job in submission.jobs]
        submission = submission.model_copy(update={"jobs": jobs})
        place.write(submission)
    return submission


def groups(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that are sent together: the elements of one array, else each on its own."""
    return [list(group) for _, group in itertools.groupby(jobs, key=lambda job: job.array or f"/{job.name}")]
