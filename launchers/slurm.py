"""SLURM through submitit: the text for sbatch, submitting, what became of jobs, cancelling.

submitit writes the script, pickles the call and starts it on every task. Its own way to requeue is not used (it acts on
rank 0 alone and believes its pickle): the job leaves a mark when it has saved, and the script requeues it.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmExecutor

from hdtrain.config.cluster import Resources
from hdtrain.errors import HdtrainError
from hdtrain.formats.job_state import JobState
from hdtrain.formats.submission import Job, Submission, SubmissionDir
from launchers.allocation import LAUNCHER_VARIABLES
from launchers.signals import FORWARDED
from launchers.task import StageJob

PATIENCE_SEC = 60
"""A command of SLURM's that doesn't answer for so long has failed."""
_STATES = {
    "PENDING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "CONFIGURING": "waiting",
    "SUSPENDED": "waiting",
    "STOPPED": "waiting",
    "SPECIAL_EXIT": "waiting",
    "RESV_DEL_HOLD": "waiting",
    "REQUEUE_FED": "waiting",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "STAGE_OUT": "running",
    "COMPLETED": "ended",
    "CANCELLED": "cancelled",
}
"""SLURM's states in ours; every other is `failed`."""

_HELD = ",".join(number.name.removeprefix("SIG") for number in FORWARDED)
_NOBODY_THERE = ("Unable to contact", "Could not establish", "fatal:", "Socket timed out", "Connection refused")
_LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED")


class _Executor(SlurmExecutor):
    """submitit's, which also tells on a machine without SLURM what it would send."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"$hold {self.python} -u -m launchers.begin {shlex.quote(str(self.folder))}"

    def text(self, elements: int = 1) -> str:
        """What sbatch would get."""
        several = {"map_count": elements} if elements > 1 else {}
        self.parameters |= several
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters.pop("map_count", None)


@dataclass(frozen=True)
class SlurmQueue:
    """The SLURM that this machine's commands speak to."""

    def check(self) -> None:
        """Raise HdtrainError if there is none here."""
        missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol", "srun") if not shutil.which(name)]
        if missing:
            raise HdtrainError(
                f"no SLURM here: {', '.join(missing)} not found; run this on a login node of the cluster, or take "
                "--cluster local"
            )

    def script(self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]) -> str:
        """The text that sbatch gets."""
        return _executor(place, submission, jobs, after).text(sum(job.elements for job in jobs))

    def refusals(self, place: SubmissionDir, submission: Submission, groups: Iterable[Sequence[Job]]) -> dict[str, str]:
        """Job to SLURM's reason why it would not take it, or never begin it; by `sbatch --test-only`.

        Raises:
            HdtrainError: there is no controller that could be asked.
        """
        told: dict[str, str] = {}
        asked: dict[str, str] = {}
        for jobs in groups:
            same = jobs[0].resources.model_dump_json()
            if same not in asked:
                asked[same] = _test(self.script(place, submission, jobs, []))
            if asked[same]:
                told[jobs[0].array or jobs[0].name] = asked[same]
        return told

    def submit(
        self, place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]
    ) -> list[list[str]]:
        """Submit one job, or several as one array, to wait for the jobs `after`; the ids of each.

        Raises:
            HdtrainError: SLURM refused it, with its reason.
        """
        executor = _executor(place, submission, jobs, after)
        executor.folder.mkdir(parents=True, exist_ok=True)
        calls = [StageJob(str(place.path), job.name) for job in jobs for _ in range(job.elements)]
        try:
            with _outside_jobs():
                if len(calls) == 1:
                    return [[executor.submit(calls[0]).job_id]]
                with executor.batch():
                    elements = [executor.submit(call) for call in calls]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise HdtrainError(f"{jobs[0].name}: SLURM did not take the job: {_reason(error)}") from None
        ids = iter([element.job_id for element in elements])
        return [[next(ids) for _ in range(job.elements)] for job in jobs]

    def states(self, ids: Iterable[str]) -> dict[str, JobState]:
        """Of those jobs that SLURM still knows. `squeue` tells the truth now; `sacct`, where it is, of older ones."""
        wanted = set(ids)
        found = {job: state for job, state in _squeue(wanted) if job in wanted}
        if missing := wanted - set(found):
            found |= {job: state for job, state in _sacct(missing) if job in missing}
        return found

    def cancel(self, ids: Iterable[str], now: bool = False) -> None:
        """Take waiting jobs out of the queue, and tell running ones to save and end; `now` leaves them KillWait."""
        wanted = sorted(ids)
        if now:
            _call(["scancel", *wanted], quiet=True)
            return
        _call(["scancel", "--state=PENDING", *wanted], quiet=True)
        _call(["scancel", "--signal=USR1", "--state=RUNNING", *wanted], quiet=True)  # those that waited are gone now


@contextlib.contextmanager
def _outside_jobs() -> Iterator[None]:
    """Without the variables of a job or of ranks that this process may itself be in; sbatch would hand them on.

    Not submitit's `clean_env`, which takes SLURM_CONF and the user's own SBATCH_… away too.
    """
    before = dict(os.environ)
    for name in before:
        job = name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
        if job or name in LAUNCHER_VARIABLES:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _test(script: str) -> str:
    """Why SLURM would refuse the script; empty: it would take it. A node that is down counts as none."""
    with _outside_jobs():
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=script,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_SEC,
            )
        except subprocess.TimeoutExpired:
            raise HdtrainError(f"sbatch does not answer for {PATIENCE_SEC} s; try again later") from None
    if not done.returncode:
        return ""
    if any(words in done.stderr for words in _NOBODY_THERE):
        raise HdtrainError(f"SLURM cannot be asked: {' '.join(done.stderr.split())}")
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    reason = next((line for line in lines if line.startswith("allocation failure: ")), (lines or [""])[-1])
    return reason.removeprefix("allocation failure: ") or f"sbatch --test-only left with {done.returncode}"


def _executor(place: SubmissionDir, submission: Submission, jobs: Sequence[Job], after: Sequence[str]) -> _Executor:
    job = jobs[0]
    profile, resources = submission.profile, job.resources
    container = profile.container
    python = None
    if container:
        parts = [container.command, "exec", *container.options, str(container.image), container.python]
        python = " ".join(map(shlex.quote, parts))
    executor = _Executor(place.job(job.array or job.name), python=python or shlex.quote(sys.executable))
    nodes = f"{resources.nodes}-{resources.max_nodes}" if resources.max_nodes else resources.nodes
    options: dict[str, Any] = {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "signal": f"USR1@{profile.signal_sec}",
        "nodes": nodes,
        **{
            name.lstrip("-").replace("_", "-"): value for name, value in resources.options.items() if value is not False
        },
    }
    executor.update_parameters(
        job_name=f"{submission.name}/{job.array or job.name}",
        time=resources.time,
        nodes=resources.nodes,
        cpus_per_task=resources.cpus_per_task * (resources.tasks if resources.max_nodes else 1),
        wckey=None,
        srun_args=["--kill-on-bad-exit=1"],
        setup=_setup(place, submission, resources),
        teardown=_teardown(place, job),
        additional_parameters=options,
        array_parallelism=resources.array_parallel or sum(one.elements for one in jobs),
        **{
            name: value
            for name, value in {
                "ntasks_per_node": None if resources.max_nodes else resources.tasks,
                "gpus_per_node": resources.gpus_per_node or None,
                "mem": f"{int(resources.mem_gb * 1024)}MB" if resources.mem_gb else None,
                "partition": resources.partition,
                "account": resources.account,
                "qos": resources.qos,
                "constraint": resources.constraint,
                "dependency": f"afterok:{':'.join(_whole_jobs(after))}" if after else None,
            }.items()
            if value is not None
        },
    )
    return executor


def _setup(place: SubmissionDir, submission: Submission, resources: Resources) -> list[str]:
    profile = submission.profile
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(profile.environment.items())]
    return [
        "# the job's processes save when they are told to end; this script stays to see how",
        "trap : TERM",
        "# they hold signals back until they can hear them (coreutils 8.31)",
        f"hold=$(env --block-signal={_HELD} true 2>/dev/null && echo env --block-signal={_HELD})",
        *profile.setup,
        *lines,
        f"export PYTHONPATH={shlex.quote(str(place.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # else the folder that the job was submitted from would come first",
        f"export HDTRAIN_COMMIT={shlex.quote(submission.commit)}",
        "# until when this attempt may run, in unix seconds: it saves in time",
        'end=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n "s/.* EndTime=\\([^ ]*\\).*/\\1/p")',
        'export HDTRAIN_JOB_END_TIME=$([ -z "$end" ] || date -d "$end" +%s 2>/dev/null)',
        "# since 22.05 srun doesn't take this over from sbatch, and every rank would get one core",
        f"export SRUN_CPUS_PER_TASK={resources.cpus_per_task}",
        *(_elastic(resources) if resources.max_nodes else []),
    ]


def _elastic(resources: Resources) -> list[str]:
    """Told to srun alone: had sbatch the number of tasks, SLURM would keep that of the first attempt after a requeue,
    and wait for as many nodes as it had then."""
    return [
        f"export SLURM_NTASKS_PER_NODE={resources.tasks} SLURM_NTASKS=$((SLURM_NNODES * {resources.tasks}))",
        'export SLURM_NPROCS="$SLURM_NTASKS"',
    ]


def _teardown(place: SubmissionDir, job: Job) -> list[str]:
    same = {name: getattr(job.resources, name) for name in ("partition", "account", "qos")}
    options = [f"--{name}={value}" for name, value in same.items() if value]
    script = place.code / "launchers" / "requeue.sh"
    return [
        " ".join(["bash", shlex.quote(str(script)), shlex.quote(str(place.path)), "$?", *map(shlex.quote, options)])
    ]


def _whole_jobs(ids: Sequence[str]) -> list[str]:
    """For a dependency: an array's own id stands for all its elements."""
    return list(dict.fromkeys(one.partition("_")[0] for one in ids))


def _squeue(ids: set[str]) -> Iterable[tuple[str, JobState]]:
    """Of every element, `123_4` in arrays. (Without -r those not begun stand in one line, cut off where it is long.)"""
    numbers = ",".join(sorted({one.partition("_")[0] for one in ids}))
    text = _call(["squeue", "-h", "-a", "-r", "-j", numbers, "-o", "%i|%T|%r|%N|%S|%V"], quiet=True)
    for line in text.splitlines():
        job, state, reason, nodes, begins, _ = [*line.split("|"), "", "", "", "", ""][:6]
        told = _state(state, reason, nodes, begins)
        if told.word in _LOST:  # while squeue lists it, it begins again
            told = replace(told, kind="waiting")
        yield from ((one, told) for one in expand_elements(job, ids))


def _sacct(ids: set[str]) -> Iterable[tuple[str, JobState]]:
    if not shutil.which("sacct"):
        return
    numbers = ",".join(sorted({one.partition("_")[0] for one in ids}))
    try:
        columns = "JobID,State,Reason,NodeList,ExitCode"
        text = _call(["sacct", "-n", "-P", "-X", "-j", numbers, "-o", columns], quiet=True)
    except HdtrainError:  # the command is there, and accounting isn't
        return
    for line in text.splitlines():
        job, state, reason, nodes, code = [*line.split("|"), "", "", "", "", ""][:5]
        told = _state(state, reason if reason != "None" else "", nodes, "", code)
        yield from ((one, told) for one in expand_elements(job, ids))


def _state(state: str, reason: str, nodes: str, begins: str = "", code: str = "") -> JobState:
    word = state.split()[0].rstrip("+") if state else ""
    kind = _STATES.get(word, "failed")
    return JobState(
        kind,  # type: ignore[arg-type]
        word,
        reason if reason not in ("None", "") else "",
        nodes,
        begins if kind == "waiting" and begins not in ("N/A", "") else "",
        code,
    )


def expand_elements(job: str, ids: set[str]) -> list[str]:
    """Which of `ids` a line of squeue is about: `123`, `123_4`, or `123_[0-2,7%2]`."""
    found = re.fullmatch(r"(\d+)_\[([^\]%]*)(?:%\d+)?\]", job)
    if not found:
        return [job]
    spans = [span.partition("-") for span in found[2].split(",")]
    numbers = [n for first, _, last in spans if first for n in range(int(first), int(last or first) + 1)]
    return [one for one in (f"{found[1]}_{number}" for number in numbers) if one in ids]


def _call(command: list[str], quiet: bool = False) -> str:
    """What a command of SLURM's prints; with `quiet` it may be about jobs that SLURM has forgotten."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SEC)
    except FileNotFoundError:
        raise HdtrainError(f"{command[0]} not found: is this a login node of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise HdtrainError(f"{command[0]} does not answer for {PATIENCE_SEC} s; try again later") from None
    if done.returncode and not quiet:
        raise HdtrainError(f"{' '.join(command[:2])}: {done.stderr.strip()}")
    if done.returncode and "Invalid job id" not in done.stderr:
        raise HdtrainError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}; try again later")
    return done.stdout


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line.removeprefix("sbatch: error: ") for line in lines if "error" in line.lower()]
    return "; ".join(told or lines)
