"""What runs inside a job: one call a task (rank), from `srun` through submitit, or from the local queue.

The stage itself is a child process, so that this one can hear the queue's signals, pass them on, and act when the stage
has saved. A job that saved before its end leaves a mark, and the batch script (or the local queue) requeues it: nothing
of the model is in submitit's pickle, and the stage goes on from its newest checkpoint.
"""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdtrain.config.load import read_yaml, validate
from hdtrain.config.stages import STAGES
from hdtrain.distributed.outcome import OUTCOME_VARIABLE
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.errors import HdtrainError
from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.submission import Job, Submission, SubmissionDir, read_attempts
from hdtrain.prepare import InUseError, await_prepared, locked, run_node
from hdtrain.stages.__main__ import MISTAKE
from launchers.allocation import Allocation
from launchers.local import Tee, next_log, tell_interruption
from launchers.processes import environment, start
from launchers.signals import Signals

LOCK_PATIENCE_SEC = 180.0
CODE = Path(__file__).parents[1]
"""Where this code lies: in the submission, and nowhere else."""
UNHEALTHY = 4
"""Exit code of a health check that failed."""


class StageFailedError(HdtrainError):
    """The stage ended with an error, which is the message."""


@dataclass(frozen=True)
class StageJob:
    """A job, as submitit pickles it: names alone, everything else is read from the submission."""

    submission: str
    job: str

    def __call__(self) -> str:
        """Run this task; `published`, or `stopped` for a job that goes on in another attempt.

        Raises:
            StageFailedError: it failed, and what waits for it must not begin.
        """
        return run_task(SubmissionDir(Path(self.submission)), self.job, Allocation.from_environment())


def run_task(place: SubmissionDir, name: str, allocation: Allocation) -> str:
    """As `StageJob.__call__`."""
    submission = place.read()
    job = submission.job(name)
    record = Record(place, name, allocation)
    with Signals() as signals:
        record.begin()
        if place.cancelled(job.name).exists():  # while it began, and no step was there yet to be told
            record.end(STOPPED_EXIT_CODE, "cancelled before it began")
            raise StageFailedError("cancelled")
        try:
            code = _run(place, submission, job, allocation, signals)
        except BaseException as error:
            record.end(1, str(error) or type(error).__name__)
            raise
    interrupted = bool(signals.received) and code not in (0, MISTAKE, STOPPED_EXIT_CODE)
    if interrupted and allocation.world.size > 1:
        _requeue(place, submission, job, allocation, record, "interrupted")
        # The other ranks may not have been told, and wait for this one: srun ends them when a task fails.
        raise StageFailedError(f"{_name(signals.received[0])} came before the ranks could save together")
    if interrupted or code == STOPPED_EXIT_CODE:
        return _requeue(place, submission, job, allocation, record, "stopped")
    if code == UNHEALTHY:
        return _requeue(place, submission, job, allocation, record, "unhealthy")
    if code:
        told = _told(place.outcome(name, allocation.job_id, allocation.restarts))
        message = told or _unexplained(job, allocation, code)
        if code != MISTAKE and allocation.world.size > 1 and _may_try_again(place, submission, job, allocation):
            message += "; it is tried again"
            _leave(place.requeue(allocation.job_id))
        else:
            _leave(place.failed(allocation.job_id, allocation.restarts))
        record.end(code, message, _progress(job))
        raise StageFailedError(message)
    record.end(0)
    return "published"


def _run(place: SubmissionDir, submission: Submission, job: Job, allocation: Allocation, signals: Signals) -> int:
    """The exit code of the stage; 0 too where it is done already."""
    spec, source, scratch = STAGES[job.stage], str(place.config(job.name)), scratch_of(submission)
    checked = submission.profile.health_check and (allocation.world.size > 1 or job.resources.gpus_per_node > 0)
    if checked and (code := check_health(place, job, allocation, signals, scratch)):
        return code
    config = validate(spec.config, read_yaml(place.config(job.name)), source)
    launcher = TaskLauncher(place, job, allocation, signals, scratch)
    if allocation.world.is_main:
        again = spec.repeats
        if allocation.restarts and not spec.shared:
            await_free(job.directory)
        return run_node(
            job.stage, config, job.directory, ranks=allocation.world.size, launcher=launcher, source=source, again=again
        ).code
    state = await_prepared(job.stage, config, job.directory, source, spec.repeats)
    return 0 if state.status == "done" else launcher.run_stage(job.stage, job.directory, allocation.world.size)


def await_free(directory: Path) -> None:
    """After a node's power cut its lock may stay on a file server: wait for it, `LOCK_PATIENCE_SEC` at most."""
    until = time.monotonic() + LOCK_PATIENCE_SEC
    while time.monotonic() < until:
        try:
            with locked(directory):
                return
        except InUseError:
            time.sleep(1)


class TaskLauncher:
    """Runs this task's rank of a prepared stage."""

    def __init__(
        self, place: SubmissionDir, job: Job, allocation: Allocation, signals: Signals, scratch: Path | None = None
    ):
        self._place, self._job, self._allocation, self._signals = place, job, allocation, signals
        self._scratch = scratch

    def run_stage(self, stage: str, run_dir: Path, ranks: int) -> int:
        """Run it and return the exit code that its ranks mean."""
        outcome = self._place.outcome(self._job.name, self._allocation.job_id, self._allocation.restarts)
        variables = {**stage_environment(stage, self._allocation, self._scratch), OUTCOME_VARIABLE: str(outcome)}
        command = [sys.executable, "-m", "hdtrain.stages", stage, str(run_dir)]
        if not self._allocation.world.is_main:
            code = self._signals.wait(start(command, variables))
        else:
            with Tee(next_log(RunDir(run_dir))) as tee:
                code = self._signals.wait(start(command, variables, stdout=tee.input, stderr=tee.input))
            if message := _read(outcome).get("message"):
                print(f"error: {message}", file=sys.stderr)
                with contextlib.suppress(OSError), tee.path.open("a") as log:
                    print(f"error: {message}", file=log)
            if code and self._signals.received:
                tell_interruption(RunDir(run_dir), stage, tee.path, self._signals.received[0])
        told = _read(outcome)
        return int(told.get("code", code))


def stage_environment(stage: str, allocation: Allocation, scratch: Path | None) -> dict[str, str]:
    """For the stage's process."""
    variables = environment()
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
        variables["TMPDIR"] = str(scratch)
    if allocation.cpus_per_task:
        variables.setdefault("OMP_NUM_THREADS", str(allocation.cpus_per_task))
    if allocation.world.size > 1:
        variables |= allocation.variables(torch=STAGES[stage].needs_torch)
    return variables


def scratch_of(submission: Submission) -> Path | None:
    """The profile's scratch folder on this node."""
    text = submission.profile.scratch
    return Path(os.path.expandvars(text)) if text else None


def check_health(place: SubmissionDir, job: Job, allocation: Allocation, signals: Signals, scratch: Path | None) -> int:
    """0, UNHEALTHY (a node that is to blame stands in `bad_nodes` then), or STOPPED_EXIT_CODE after a signal."""
    command = [sys.executable, "-m", "hdtrain.distributed.health", str(place.bad_nodes), str(job.directory)]
    variables = environment() | (allocation.variables(torch=True) if allocation.world.size > 1 else {})
    if job.resources.gpus_per_node:
        command.append("--gpu")
    if scratch:
        command.append(f"--scratch={scratch}")
    code = signals.wait(start(command, variables))
    if code and signals.received:  # it was told to end, and says nothing about the node
        return STOPPED_EXIT_CODE
    return UNHEALTHY if code else 0


def _requeue(
    place: SubmissionDir, submission: Submission, job: Job, allocation: Allocation, record: "Record", why: str
) -> str:
    """Ask for another attempt, unless the job was cancelled or had too many.

    Raises:
        StageFailedError: no more attempts.
    """
    if not allocation.world.is_main and why != "interrupted":
        return "stopped"
    if place.cancelled(job.name).exists():
        record.end(STOPPED_EXIT_CODE, "cancelled, after saving")
        raise StageFailedError("cancelled")  # so that what waits for it does not begin
    if place.failed(allocation.job_id, allocation.restarts).exists():  # and so srun told this rank to end
        raise StageFailedError("another rank failed")
    bad = _bad_nodes(place)
    if why == "unhealthy" and not bad:
        record.end(1, message := "the ranks cannot reach each other: the all-reduce before the first step failed")
        raise StageFailedError(f"{message}; see the logs in {place.job(job.name)}")
    if allocation.restarts >= submission.profile.max_restarts:
        record.end(1, message := f"requeued {allocation.restarts} times, and max_restarts allows no more")
        raise StageFailedError(message)
    record.end(STOPPED_EXIT_CODE, f"node {', '.join(bad)} failed its health check" if why == "unhealthy" else "")
    _leave(place.requeue(allocation.job_id))
    return "stopped"


def _name(number: int) -> str:
    return signal.Signals(number).name


def _leave(mark: Path) -> None:
    mark.parent.mkdir(exist_ok=True)
    mark.touch()


def _unexplained(job: Job, allocation: Allocation, code: int) -> str:
    who = f"rank {allocation.world.rank} on {os.uname().nodename}"
    if code < 0:
        guess = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"{who} was killed by {_name(-code)}{guess}"
    return f"{who} ended with exit code {code}; see {job.directory}/logs"


def _may_try_again(place: SubmissionDir, submission: Submission, job: Job, allocation: Allocation) -> bool:
    """Whether an attempt that died is worth another: not, when those before it died at this very checkpoint."""
    if place.cancelled(job.name).exists() or allocation.restarts >= submission.profile.max_restarts:
        return False
    ends = {one["restarts"]: one for one in read_attempts(place, job.name) if _died(one, allocation.job_id)}
    here = _progress(job)
    return sum(one.get("progress") == here for one in ends.values()) < submission.profile.retries


def _died(line: dict[str, Any], job_id: str) -> bool:
    return line["job_id"] == job_id and line["event"] == "end" and line["code"] not in (0, STOPPED_EXIT_CODE)


def _progress(job: Job) -> str:
    """The newest checkpoints of the run and its seeds."""
    run = RunDir(job.directory)
    newest = [find_latest(one.checkpoints) for one in (run, *run.seeds)]
    return " ".join(path.name for path in newest if path)


def _bad_nodes(place: SubmissionDir) -> list[str]:
    try:
        return sorted(set(place.bad_nodes.read_text().split()))
    except OSError:
        return []


class Record:
    """Begin and end of this attempt, in the job's `attempts.jsonl`; rank 0's alone."""

    def __init__(self, place: SubmissionDir, job: str, allocation: Allocation):
        self._path, self._allocation = place.attempts(job), allocation

    def begin(self) -> None:
        """Before anything else."""
        where = {"nodes": list(self._allocation.nodes), "ranks": self._allocation.world.size}
        self._write({"event": "begin", **where, "host_of_rank_0": os.uname().nodename, "code_from": str(CODE)})

    def end(self, code: int, message: str = "", progress: str = "") -> None:
        """With the exit code and, of a failure, the reason and how far it was; of a failure any rank may say so."""
        what = {"event": "end", "code": code, "message": message, "rank": self._allocation.world.rank}
        failed = code not in (0, STOPPED_EXIT_CODE)
        self._write({**what, "progress": progress} if failed else what, anybody=failed)

    def _write(self, what: dict[str, Any], anybody: bool = False) -> None:
        if not (self._allocation.world.is_main or anybody):
            return
        line = {"time": time.time(), "job_id": self._allocation.job_id, "restarts": self._allocation.restarts, **what}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def _read(outcome: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(outcome.read_bytes())
        return told
    except (OSError, ValueError):
        return {}


def _told(outcome: Path) -> str:
    return str(_read(outcome).get("message", ""))
