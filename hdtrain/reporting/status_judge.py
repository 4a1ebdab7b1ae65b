"""What a submitted run does: from its run directory, its submission, and what the queue says. No torch.

The run directory has the last word on what is published and how far a run is; the queue on what runs and waits; where
the queue knows a job no more (SLURM without accounting forgets within minutes), what the job wrote down decides.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdtrain.formats.job_state import JobState
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.submission import read_attempts
from hdtrain.reporting.status import Status, last_words, read_status
from hdtrain.reporting.status_job import Answers, JobStatus
from hdtrain.reporting.status_jobs import Found, Runs, Submitted
from hdtrain.reporting.status_logs import age_key, attempt_logs, rank_logs
from hdtrain.reporting.status_words import why_ended, why_waiting

NOT_RUN = ("failed", "killed", "cancelled", "will not run")
"""States of a parent for which its children wait in vain."""
GONE = "gone from the queue without a word: out of memory, a lost node, or killed"
_FINE = (0, 3)
"""Exit codes of attempts that published, or saved and left."""
_CLOCKS_SEC = 2.0


def ids_to_ask(runs: Runs, around: bool = False) -> dict[str, set[str]]:
    """Queue to the ids that it must be asked about: of the runs asked for and of those that they wait for.

    Args:
        runs: those asked for.
        around: of everything else in their folders too.
    """
    wanted: dict[str, set[str]] = {}
    near = [one for family in runs.families() for one in family.values()] if around else []
    for found in [*near, *(one for asked in runs.asked for one in _lineage(asked, runs.family(asked), set()))]:
        if (told := found.submitted) and not _published_by(told, found.path):
            wanted.setdefault(told.submission.queue, set()).update(told.job.ids)
    return wanted


def _lineage(found: Found, family: dict[str, Found], seen: set[str]) -> Iterator[Found]:
    yield found
    for name in found.parents:
        if name in family and name not in seen:
            seen.add(name)
            yield from _lineage(family[name], family, seen)


def _published_by(told: Submitted, path: Path) -> bool:
    """Whether what is published is this job's, not an earlier run's that lies there until the job begins."""
    return age_key(RunDir(path).manifest) > told.submission.time - _CLOCKS_SEC


@dataclass
class Judge:
    """Tells the state of runs, each once."""

    runs: Runs
    answers: Answers
    now: float = field(default_factory=time.time)
    _known: dict[Path, Status] = field(default_factory=dict)

    def statuses(self) -> list[Status]:
        """Of the runs asked for, in order."""
        return [self.status(found) for found in self.runs.asked]

    def status(self, found: Found) -> Status:
        """Of one run."""
        key = found.path.absolute()
        if key not in self._known:
            status = read_status(found.path, self.now)
            self._known[key] = status
            if found.submitted:
                family = self.runs.family(found)
                parents = [self.status(family[name]) for name in found.parents if name in family]
                _Case(status, found.submitted, parents, self.answers, self.now).decide()
        return self._known[key]


class _Case:
    """One submitted run: brings its status up to what the queue says."""

    def __init__(self, status: Status, told: Submitted, parents: Sequence[Status], answers: Answers, now: float):
        self.status, self.told, self.parents, self.now = status, told, parents, now
        job = told.job
        self.says = [answers.elements[one] for one in job.ids if one in answers.elements]
        self.count: Counter[str] = Counter(element.kind for element in self.says)
        self.attempts = read_attempts(told.place, job.name)
        self.cancelled = told.place.cancelled(job.name).exists()
        self.reachable = told.submission.queue not in answers.unreachable
        status.job = self.job = JobStatus(
            queue=told.submission.queue,
            ids=list(job.ids),
            submission=str(told.place.path),
            submitted=told.submission.time,
            elements=dict(self.count),
            requeued=_requeued(self.attempts),
            active=bool(self.count["running"] + self.count["waiting"]),
            cancelled=self.cancelled,
            reachable=self.reachable,
        )
        status.sweep = told.sweep
        status.stage = job.stage

    def decide(self) -> None:
        """State, detail, message and log."""
        if self.status.state == "published" and _published_by(self.told, Path(self.status.path)):
            return
        if not self.job.active and self._goes_on_by_hand():
            return
        if self.count["running"]:
            self._running()
        elif self.count["waiting"]:
            self._waiting()
        elif self.reachable:
            self._over()
        elif self.cancelled and self.status.state in ("not begun", "stopped"):
            self.status.state = "cancelled"

    def _running(self) -> None:
        one = self._first("running")
        self.job.nodes = sorted({element.nodes for element in self.says if element.kind == "running" and element.nodes})
        if self.cancelled:
            self._become("running", "was cancelled: it saves, and ends")
        elif self.status.state not in ("running", "hung"):
            where = f"on {', '.join(self.job.nodes)}" if self.job.nodes else ""
            doing = "ending" if one.word == "COMPLETING" else "beginning"
            self._become("running", ", ".join(filter(None, [where, doing])))

    def _waiting(self) -> None:
        one = self._first("waiting")
        self.job.reason = one.reason or None
        self.job.begins = one.begins or None
        open_parents = [parent for parent in self.parents if parent.state != "published"]
        lost = [parent for parent in open_parents if parent.state in NOT_RUN]
        if one.reason == "DependencyNeverSatisfied" and not lost:  # a parent that neither it nor the queue remembers
            lost = open_parents
        if lost and "Dependency" in one.reason:
            self._in_vain(lost)
        elif open_parents and not self.attempts:
            self.job.waits_for = [_name(parent) for parent in open_parents]
            self._become("not begun", f"waits for {', '.join(self.job.waits_for)}")
        elif self.parents and not open_parents and one.reason == "Dependency":
            self._become("waiting", "what it waits for is published; it begins when that job has left the queue")
        else:
            self._become("waiting", why_waiting(one.reason, one.word))

    def _in_vain(self, lost: Sequence[Status]) -> None:
        self.job.waits_for = [_name(parent) for parent in lost]
        words = {"cancelled": "was cancelled", "will not run": "will not run"}
        first = lost[0]
        others = f", {', '.join(self.job.waits_for[1:])} too" if len(lost) > 1 else ""
        self._become("will not run", f"{_name(first)} {words.get(first.state, 'failed')}{others}")

    def _over(self) -> None:
        """The queue has ended it, or doesn't know it any more."""
        lost = [parent for parent in self.parents if parent.state in NOT_RUN]
        if lost and not self.attempts and not self.cancelled:
            self._in_vain(lost)
        elif self.cancelled or (self.count["cancelled"] and not self.count["failed"]):
            by = "" if self.cancelled else f"not by `hdtrain cancel`{self._reason('cancelled')}"
            self._become("cancelled", by)
        elif self.count["failed"]:
            one = self._first("failed")
            self._fail("failed", why_ended(one.word, one.code) or one.reason)
        elif self.count["ended"]:
            if self.status.state in ("not begun", "running", "unknown"):
                self._become("unknown", "its job ended well, and nothing is published")
        else:
            self._forgotten()

    def _forgotten(self) -> None:
        """By what the job wrote down itself."""
        last = list({str(one.get("job_id")): one for one in self.attempts}.values())
        bad = [one for one in last if one.get("event") == "end" and one.get("code") not in _FINE]
        if not last:
            if self.status.state != "published":
                self._fail("failed", "gone from the queue, and it never began")
        elif any(one.get("event") == "begin" for one in last):
            self._fail("killed", GONE)
        elif bad:
            self._fail("failed", f"exit code {bad[-1].get('code')}")
        elif any(one.get("code") for one in last) and self.status.state != "published":
            self._become("stopped", "it saved to go on in another attempt, and is not in the queue")

    def _goes_on_by_hand(self) -> bool:
        """Whether somebody runs it outside the queue since the job ended."""
        if self.status.state not in ("running", "hung") or self.status.running_sec is None:
            return False
        ended = self.attempts and self.attempts[-1].get("event") == "end"
        return bool(ended) and self.now - self.status.running_sec > _time(self.attempts[-1]) - _CLOCKS_SEC

    def _fail(self, state: Any, why: str) -> None:
        """With the last error in words, and its log."""
        several = f"{self.count['failed']} of {self.told.job.elements} elements" if self.told.job.elements > 1 else ""
        words, log = self._last_error()
        if words and why.startswith("exit code"):
            why = ""  # the message says more
        self._become(state, ": ".join(filter(None, [several, why])))
        self.status.message, self.status.log = words, log

    def _last_error(self) -> tuple[str | None, str | None]:
        began = max((_time(one) for one in self.attempts if one.get("event") == "begin"), default=self.job.submitted)
        place, job = self.told.place, self.told.job
        ends = [one for one in self.attempts if one.get("event") == "end" and one.get("code") not in _FINE]
        words = str(ends[-1].get("message") or "") if ends and _time(ends[-1]) >= began else ""
        words = words or _outcome(sorted(place.job(job.name).glob("outcome-*.json"), key=age_key), began)
        printed = sorted(rank_logs(place, job, 0), key=lambda path: path.suffix == ".err")
        candidates = [*printed, *attempt_logs(Path(self.status.path))]
        fresh = [path for path in candidates if age_key(path) >= began - _CLOCKS_SEC and path.stat().st_size]
        if not fresh:
            return words or None, None
        log = fresh[-1]
        return words or last_words(log), str(log)

    def _become(self, state: Any, detail: str) -> None:
        self.status.state, self.status.detail = state, detail
        self.status.message = self.status.log = None
        if state != "running":
            self.status.seconds_left = self.status.running_sec = None
        kind = {"cancelled": "cancelled", "failed": "failed", "waiting": "waiting", "running": "running"}.get(state)
        self.job.word = next((one.word for one in self.says if one.kind == kind), None) or (
            self.says[0].word if self.says else None
        )

    def _first(self, kind: str) -> JobState:
        return next(element for element in self.says if element.kind == kind)

    def _reason(self, kind: str) -> str:
        told = self._first(kind).reason
        return f" ({told})" if told else ""


def _outcome(files: Sequence[Path], began: float) -> str:
    """What the first rank to fail wrote, of an attempt that nobody ended properly."""
    if not files or age_key(files[-1]) < began - _CLOCKS_SEC:
        return ""
    try:
        told = json.loads(files[-1].read_bytes())
    except (OSError, ValueError):
        return ""
    return str(told.get("message", "")) if isinstance(told, dict) else ""


def _requeued(attempts: Sequence[dict[str, Any]]) -> int:
    most: dict[str, int] = {}
    for one in attempts:
        job_id, restarts = str(one.get("job_id")), one.get("restarts")
        most[job_id] = max(most.get(job_id, 0), restarts if isinstance(restarts, int) else 0)
    return sum(most.values())


def _time(attempt: dict[str, Any]) -> float:
    value = attempt.get("time")
    return float(value) if isinstance(value, int | float) else 0.0


def _name(status: Status) -> str:
    return Path(status.path).absolute().name
