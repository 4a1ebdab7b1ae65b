"""The queue of `--cluster local`: subprocesses of this machine under the rules of SLURM's jobs.

A controller a submission (`launchers.controller`), in a session of its own, starts jobs when what they wait for has
ended well, restarts those that saved before their end, and writes every job's state into the submission. Nothing here
outlives a reboot: then `hdtrain retry` goes on.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdtrain.formats.atomic import write_json
from hdtrain.formats.job_state import JobState
from hdtrain.formats.submission import Job, Submission, SubmissionDir
from launchers.allocation import LAUNCHER_VARIABLES

PATIENCE_SEC = 20.0


@dataclass(frozen=True)
class LocalQueue:
    """Jobs have ids like `local:/runs/kather/.launch/001:ldm`."""

    def check(self) -> None:
        """It can always be used."""

    def script(self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]) -> str:
        """What runs, once a task."""
        ranks = jobs[0].resources.tasks
        return f"{sys.executable} -m launchers.controller {place.path}   # {ranks} rank{'s' if ranks > 1 else ''} a job"

    def refusals(self, place: SubmissionDir, submission: Submission, groups: Iterable[Sequence[Job]]) -> dict[str, str]:
        """It takes every job."""
        return {}

    def submit(
        self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]
    ) -> list[list[str]]:
        """Write the jobs' states; with the submission's last job the controller starts."""
        for job in jobs:
            place.job(job.name).mkdir(parents=True, exist_ok=True)
            for element in range(job.elements):
                write_state(place, job.name, element, JobState("waiting", "PENDING", "waits for its turn"), list(after))
        if {job.name for job in submission.jobs} == {path.name for path in (place.path / "jobs").iterdir()}:
            start_controller(place)
        return [[f"local:{place.path}:{job.name}:{element}" for element in range(job.elements)] for job in jobs]

    def states(self, ids: Iterable[str]) -> dict[str, JobState]:
        """As the controller wrote them; of a submission whose controller is gone nothing runs any more."""
        found = {}
        for one in ids:
            path, name, element = one.removeprefix("local:").rsplit(":", 2)
            place = SubmissionDir(Path(path))
            state, _ = read_state(place, name, int(element))
            if state and state.kind in ("waiting", "running") and not controlled(place):
                state = JobState("failed", "CONTROLLER_GONE", "the machine was restarted, or the controller killed")
            if state:
                found[one] = state
        return found

    def cancel(self, ids: Iterable[str], now: bool = False) -> None:
        """Leave a mark, which the controller sees within a second; it gives a job half a minute in any case."""
        for one in ids:
            path, name, _ = one.removeprefix("local:").rsplit(":", 2)
            SubmissionDir(Path(path)).cancelled(name).touch()


def start_controller(place: SubmissionDir) -> None:
    """In the background, with the submission's own code; it holds its lock when this returns."""
    variables = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    variables |= {"PYTHONPATH": code_first(place, variables), "PYTHONSAFEPATH": "1"}  # not the current folder's code
    with (place.path / "controller.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "launchers.controller", str(place.path)],
            env=variables,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + PATIENCE_SEC
    while not controlled(place) and time.monotonic() < until and not (place.path / "controller.ended").exists():
        time.sleep(0.05)


def code_first(place: SubmissionDir, variables: Mapping[str, str]) -> str:
    """PYTHONPATH: the submission's code before what is there."""
    return os.pathsep.join(filter(None, [str(place.code), variables.get("PYTHONPATH")]))


def controlled(place: SubmissionDir) -> bool:
    """Whether the submission's controller lives."""
    try:
        with (place.path / "controller.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def write_state(place: SubmissionDir, name: str, element: int, state: JobState, after: Sequence[str] = ()) -> None:
    """Of one element of a job."""
    write_json(_file(place, name, element), {"state": asdict(state), "after": list(after)})


def read_state(place: SubmissionDir, name: str, element: int) -> tuple[JobState | None, list[str]]:
    """The state, and the ids of what it waits for."""
    try:
        tree: dict[str, Any] = json.loads(_file(place, name, element).read_bytes())
    except (OSError, ValueError):
        return None, []
    return JobState(**tree["state"]), tree["after"]


def _file(place: SubmissionDir, name: str, element: int) -> Path:
    return place.job(name) / f"state-{element}.json"
