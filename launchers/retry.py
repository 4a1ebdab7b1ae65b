"""Jobs that failed, were cancelled, or waited for such in vain, submitted again: alone, as they were submitted then."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from hdtrain.config.load import read_yaml, validate
from hdtrain.config.stages import STAGES
from hdtrain.errors import HdtrainError
from hdtrain.formats.submission import Job, Submission, SubmissionDir, read_attempts
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_jobs import Found, Submitted, in_order
from hdtrain.reporting.status_judge import NOT_RUN
from launchers.overview import Overview
from launchers.queue import queue_of
from launchers.submit import describe, open_submission, reopen_submission, submit

AGAIN = (*NOT_RUN, "stopped", "unknown")
"""States of a run whose job is over, in which there is something left to do."""


def to_retry(found: Overview) -> list[Found]:
    """What there is to submit again, parents before their children.

    Of a run that was named itself: it, and what waited for it in vain.

    Raises:
        HdtrainError: one waits for a run that is neither published nor in the queue, nor submitted again.
    """
    asked = [one for one in found.runs.asked if one.submitted]
    wanted = {one.path.absolute(): one for one in asked if _again(found.status(one))}
    for family in found.runs.families():
        for one in in_order(family):
            vain = found.status(one).state == "will not run"
            if vain and any(path.parent == one.path.parent and path.name in one.parents for path in wanted):
                wanted.setdefault(one.path, one)
    missing = [
        (one.name, name, found.status(parents[name]).state)
        for one in wanted.values()
        for parents in [found.runs.family(one)]
        for name in one.parents
        if name in parents and parents[name].path not in wanted and not _comes(found.status(parents[name]))
    ]
    if missing:
        child, parent, state = missing[0]
        raise HdtrainError(
            f"{child} waits for {parent} ({state}); retry the whole folder: hdtrain retry "
            f"{next(iter(wanted.values())).path.parent}"
        )
    return list(wanted.values())


def _again(status: Status) -> bool:
    """Whether a run's job is over, and it is not published."""
    if status.job is None or status.job.active:
        return False
    return status.state in AGAIN


def _comes(status: Status) -> bool:
    """Whether what a run publishes is there or on its way."""
    return status.state == "published" or bool(status.job and status.job.active)


def resubmit(
    wanted: Sequence[Found], found: Overview, command: Sequence[str], *, fresh_code: bool
) -> list[SubmissionDir]:
    """Submit them; of each earlier submission one new one, with its code and configs.

    Raises:
        HdtrainError: the queue refused one.
    """
    told = [one.submitted for one in wanted if one.submitted]
    for kind in {one.submission.queue for one in told}:
        queue_of(kind).check()
    ids: dict[tuple[Path, str], list[str]] = {}
    places = []
    for _, group in itertools.groupby(told, key=lambda one: one.place.path):
        members = list(group)
        first = members[0]
        jobs = [_job(one, members, ids, found) for one in members]
        record = describe(
            first.submission.name,
            first.submission.folder,
            first.submission.profile,
            jobs,
            command,
            sweep=first.submission.sweep,
            retry_of=first.place.path.name,
        )
        place, record = _open(record, first, fresh_code)
        done = submit(place, record, queue_of(record.queue))
        ids |= {(record.folder, job.name): job.ids for job in done.jobs}
        places.append(place)
    return places


def _open(record: Submission, earlier: Submitted, fresh_code: bool) -> tuple[SubmissionDir, Submission]:
    if not fresh_code:
        record = record.model_copy(update={"commit": earlier.submission.commit})
        return reopen_submission(record, earlier.place), record
    configs = {}
    for job in record.jobs:
        file = earlier.place.config(job.name)
        configs[job.name] = validate(STAGES[job.stage].config, read_yaml(file), str(file))
    return open_submission(record, configs), record


def _job(
    one: Submitted, together: Iterable[Submitted], sent: dict[tuple[Path, str], list[str]], found: Overview
) -> Job:
    """As it was, after those of its parents that are submitted with it or are in the queue."""
    names = {other.job.name for other in together}
    family = found.runs.around.get(one.submission.folder, {})
    after_ids: list[str] = []
    for name in one.parents:
        if name in names:
            continue
        if (one.submission.folder, name) in sent:
            after_ids += sent[one.submission.folder, name]
        elif name in family and (job := found.status(family[name]).job) and job.active:
            after_ids += job.ids
    elements = _elements(one, found)
    return one.job.model_copy(
        update={
            "after": [name for name in one.parents if name in names],
            "after_ids": after_ids,
            "ids": [],
            "elements": elements,
            "resources": one.job.resources.model_copy(update={"array": elements}),
        }
    )


def _elements(one: Submitted, found: Overview) -> int:
    """Of an array as many as did not end well; they share the work, so any number can do it."""
    if one.job.elements == 1:
        return 1
    well = sum(found.answers.elements[i].kind == "ended" for i in one.job.ids if i in found.answers.elements)
    if not any(i in found.answers.elements for i in one.job.ids):
        last = {attempt.get("job_id"): attempt for attempt in read_attempts(one.place, one.job.name)}
        well = sum(attempt.get("event") == "end" and attempt.get("code") == 0 for attempt in last.values())
    return max(1, one.job.elements - well)
