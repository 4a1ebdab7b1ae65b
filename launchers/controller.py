"""`python -m launchers.controller SUBMISSION`: runs the jobs of a local submission to their end."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hdtrain.formats.job_state import JobState
from hdtrain.formats.submission import Job, SubmissionDir
from launchers.allocation import QUEUE_VARIABLE
from launchers.local_queue import LocalQueue, code_first, read_state, write_state
from launchers.processes import start
from launchers.signals import held

POLL_SEC = 0.2
KILL_SEC = 30.0
"""So long may a job take to save after its time is up or it was cancelled, as with SLURM's KillWait."""


@dataclass
class Attempt:
    """The running processes of one element."""

    processes: "list[subprocess.Popen[bytes]]"
    began: float
    told: float | None = None
    """When they were told to save."""
    killed: bool = False
    late: bool = False
    """It was killed since it had not ended in time after it was told."""
    code: int = 0


@dataclass
class Element:
    """One element of a job."""

    job: Job
    number: int
    restarts: int = 0
    attempt: Attempt | None = None
    state: JobState = field(default_factory=lambda: JobState("waiting", "PENDING"))

    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state.kind in ("ended", "failed", "cancelled")


class Controller:
    """Runs the jobs of one submission."""

    def __init__(self, place: SubmissionDir):
        self.place, self.submission = place, place.read()
        self.elements = [Element(job, n) for job in self.submission.jobs for n in range(job.elements)]
        self._cpus = len(os.sched_getaffinity(0))

    def run(self) -> None:
        """Until all have ended."""
        while not all(element.over() for element in self.elements):
            for element in self.elements:
                if element.attempt:
                    self._watch(element, element.attempt)
                elif not element.over():
                    self._begin_if_ready(element)
            time.sleep(POLL_SEC)

    def _begin_if_ready(self, element: Element) -> None:
        if self.place.cancelled(element.job.name).exists():
            self._become(element, JobState("cancelled", "CANCELLED"))
            return
        parents = list(self._parents(element))
        if any(parent.kind in ("failed", "cancelled") for parent in parents):
            self._become(element, JobState("cancelled", "CANCELLED", "DependencyNeverSatisfied"))
        elif all(parent.kind == "ended" for parent in parents):
            running = sum(one.attempt is not None for one in self.elements)
            if running < self.submission.profile.max_jobs:
                self._begin(element)

    def _parents(self, element: Element) -> Iterator[JobState]:
        yield from (one.state for one in self.elements if one.job.name in element.job.after)
        _, ids = read_state(self.place, element.job.name, element.number)
        own = f"local:{self.place.path}:"
        yield from LocalQueue().states(one for one in ids if not one.startswith(own)).values()

    def _begin(self, element: Element) -> None:
        job, ranks = element.job, element.job.resources.tasks
        job_id = f"{os.getpid()}{self.submission.jobs.index(job):03d}{element.number}"
        common = {
            **os.environ,
            **self.submission.profile.environment,
            **self._own_code(),
            QUEUE_VARIABLE: "local",
            "HDTRAIN_JOB_ID": job_id,
            "HDTRAIN_RESTARTS": str(element.restarts),
            "HDTRAIN_COMMIT": self.submission.commit,
            "HDTRAIN_JOB_END_TIME": str(int(time.time() + job.resources.time * 60)),
            "WORLD_SIZE": str(ranks),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, self._cpus // ranks))),
        }
        command = [sys.executable, "-m", "launchers.controller", "--task", str(self.place.path), job.name]
        processes = []
        for rank in range(ranks):
            with (self.place.job(job.name) / f"{job_id}_{rank}_log.out").open("ab") as log:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with held():  # until it can hear them
                    process = start(command, {**common, **place}, stdout=log.fileno(), stderr=log.fileno())
                processes.append(process)
        element.attempt = Attempt(processes, time.monotonic())
        self._become(element, JobState("running", "RUNNING", nodes=os.uname().nodename))

    def _own_code(self) -> dict[str, str]:
        """A PYTHONPATH of the profile's comes after the submission's code."""
        own = self.submission.profile.environment
        return {"PYTHONPATH": code_first(self.place, own)} if "PYTHONPATH" in own else {}

    def _watch(self, element: Element, attempt: Attempt) -> None:
        codes = [process.poll() for process in attempt.processes]
        failed = next((code for code in codes if code), 0)
        attempt.code = attempt.code or failed
        if failed and not attempt.killed:
            attempt.killed = True
            _signal(attempt, signal.SIGKILL)
        if all(code is not None for code in codes):
            element.attempt = None
            self._ended(element, attempt)
            return
        now, limit = time.monotonic(), element.job.resources.time * 60
        cancelled = self.place.cancelled(element.job.name).exists()
        if attempt.told is None and (cancelled or now - attempt.began > limit - self.submission.profile.signal_sec):
            attempt.told = now
            _signal(attempt, signal.SIGTERM if cancelled else signal.SIGUSR1)
        grace = KILL_SEC if cancelled else self.submission.profile.signal_sec
        if attempt.told is not None and now - attempt.told > grace and not attempt.killed:
            attempt.killed = attempt.late = True
            _signal(attempt, signal.SIGKILL)

    def _ended(self, element: Element, attempt: Attempt) -> None:
        mark = self.place.requeue(f"{os.getpid()}{self.submission.jobs.index(element.job):03d}{element.number}")
        if self.place.cancelled(element.job.name).exists():
            self._become(element, JobState("cancelled", "CANCELLED"))
        elif mark.exists():
            mark.unlink()
            element.restarts += 1
            self._become(element, JobState("waiting", "REQUEUED"))
        elif attempt.late:
            self._become(element, JobState("failed", "TIMEOUT", code=str(attempt.code)))
        elif attempt.code:
            self._become(element, JobState("failed", "FAILED", code=str(attempt.code)))
        else:
            self._become(element, JobState("ended", "COMPLETED"))

    def _become(self, element: Element, state: JobState) -> None:
        element.state = state
        _, after = read_state(self.place, element.job.name, element.number)
        write_state(self.place, element.job.name, element.number, state, after)
        print(f"{time.strftime('%F %T')} {element.job.name} {element.number}: {state.word} {state.reason}", flush=True)


def _signal(attempt: Attempt, number: int) -> None:
    for process in attempt.processes:
        if process.poll() is None:
            process.send_signal(number)


def main(arguments: list[str]) -> int:
    """Entry point, of the controller and of its tasks."""
    if arguments[0] == "--task":
        from launchers.allocation import Allocation
        from launchers.task import StageFailedError, run_task

        try:
            run_task(SubmissionDir(Path(arguments[1])), arguments[2], Allocation.from_environment())
        except StageFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0
    place = SubmissionDir(Path(arguments[0]))
    with (place.path / "controller.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            Controller(place).run()
        finally:
            (place.path / "controller.ended").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
