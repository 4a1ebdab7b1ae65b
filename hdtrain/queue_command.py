"""What was submitted with `hdtrain launch`: looked at, stopped, submitted again.

    hdtrain status RUN|FOLDER… [--json]
    hdtrain cancel RUN|FOLDER [--only JOB]… [--now]
    hdtrain retry RUN|FOLDER [--fresh-code]

A FOLDER is a recipe's, or a sweep's.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hdtrain.errors import HdtrainError
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_job import Answers
from hdtrain.reporting.status_jobs import Found, in_order
from hdtrain.reporting.status_sweep import add_results, sweep_rows
from hdtrain.reporting.status_text import job_ids, status_notes, status_page, status_rows
from hdtrain.text import table
from launchers.overview import Overview, overview
from launchers.queue import queue_of
from launchers.retry import resubmit, to_retry


def add_status_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain status`."""
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a recipe's folder")
    command.add_argument("--json", action="store_true", help="as JSON: a list of runs")


def add_cancel_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain cancel`."""
    command.add_argument("path", type=Path, metavar="RUN|FOLDER", help="a run directory, or a recipe's folder")
    command.add_argument("--only", action="append", default=[], metavar="JOB", help="of a folder this job alone")
    command.add_argument("--now", action="store_true", help="leave running ones half a minute to save, and no more")


def add_retry_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain retry`."""
    command.add_argument("path", type=Path, metavar="RUN|FOLDER", help="a run directory, or a recipe's folder")
    command.add_argument("--fresh-code", action="store_true", help="with the code as it is now")


def status(args: argparse.Namespace) -> int:
    """`hdtrain status`: a page for one run, a table for several; of a sweep its results."""
    found = overview(args.runs)
    statuses = found.statuses
    add_results(statuses)
    for line in found.warnings:
        print(line, file=sys.stderr)
    if args.json:
        print(json.dumps([one.tree() for one in statuses], indent=1, ensure_ascii=False))
    elif len(statuses) == 1 and args.runs == [Path(statuses[0].path)]:
        print(status_page(statuses[0]))
    else:
        plain = [one for one in statuses if one.sweep is None]
        swept = [one for one in statuses if one.sweep is not None]
        tables = [table(rows(some)) for rows, some in ((status_rows, plain), (sweep_rows, swept)) if some]
        print("\n".join(["\n\n".join(tables), *status_notes(statuses)]))
    return 0


def cancel(args: argparse.Namespace) -> int:
    """`hdtrain cancel`: marks first, so that nothing is requeued; then the queue."""
    found = overview([args.path], around=True)
    jobs = _chosen(found, args.only)
    if not jobs:
        raise HdtrainError(f"{args.path} is in no queue: it was not submitted by `hdtrain launch`{_by_hand(found)}")
    _check_reachable(found)
    active = [one for one in jobs if (job := found.status(one).job) and job.active]
    if not active:
        states = ", ".join(f"{one.name} {found.status(one).state}" for one in jobs[:5])
        print(f"nothing of {args.path} is in the queue: {states}{', …' if len(jobs) > 5 else ''}")
        return 0
    _mark_and_cancel(active, found.answers, args.now)
    rows = [("job", "id", "")]
    for one in active:
        job = found.status(one).job
        assert job
        was = "was running: it saves, and ends" if job.elements.get("running") else "was waiting"
        rows.append((one.name, job_ids(job.ids), was))
    print(table(rows))
    left = _waiting_for(active, found)
    if left:
        print(f"\nwill not run, since they wait for these: {', '.join(left)}")
    print(f"\nto go on: hdtrain retry {args.path}")
    return 0


def _chosen(found: Overview, only: Sequence[str]) -> list[Found]:
    """The jobs meant; of a sweep's a name's number is enough.

    Raises:
        HdtrainError: a name that is no job's.
    """
    jobs = [one for one in found.runs.asked if one.submitted]
    if not only:
        return jobs
    names = {one.name: one for one in jobs} | {
        one.name.partition("-")[0]: one for one in jobs if one.submitted and one.submitted.sweep is not None
    }
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(one.name for one in jobs)}"
            raise HdtrainError(f"--only: no job '{name}'; {hint}")
    return list(dict.fromkeys(names[name] for name in only))


def _by_hand(found: Overview) -> str:
    running = [one for one in found.statuses if one.state == "running" and one.detail]
    return f". It is {running[0].detail}: end it there (Ctrl-C, or kill -TERM); it saves first" if running else ""


def _check_reachable(found: Overview) -> None:
    """Raise HdtrainError if a queue could not be asked: nothing is done blindly."""
    if found.warnings:
        raise HdtrainError(found.warnings[0].removeprefix("warning: ").replace(", so this is what the files tell", ""))


def _mark_and_cancel(active: Sequence[Found], answers: Answers, now: bool) -> None:
    ids: dict[str, list[str]] = {}
    for one in active:
        told = one.submitted
        assert told
        mark = told.place.cancelled(told.job.name)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        known = [i for i in told.job.ids if i in answers.elements]
        left = [i for i in known if answers.elements[i].kind in ("waiting", "running")]
        ids.setdefault(told.submission.queue, []).extend(left)
    for kind, own in ids.items():
        queue_of(kind).cancel(own, now)


def _waiting_for(gone: Sequence[Found], found: Overview) -> list[str]:
    """Jobs in the queue that wait for one of `gone`, directly or not."""
    lost, left = {one.path.absolute() for one in gone}, []
    for family in found.runs.families():
        for one in in_order(family):
            parents = {one.path.with_name(name) for name in one.parents}
            if one.path not in lost and parents & lost:
                lost.add(one.path)
                if (job := found.status(one).job) and job.active:
                    left.append(one.name)
    return left


def retry(args: argparse.Namespace) -> int:
    """`hdtrain retry`: what failed, was cancelled, or waited for such a job in vain."""
    found = overview([args.path], around=True)
    if not any(one.submitted for one in found.runs.asked):
        raise HdtrainError(f"{args.path} was not submitted by `hdtrain launch`; the command that began it continues it")
    _check_reachable(found)
    wanted = to_retry(found)
    if not wanted:
        print(f"nothing to submit again in {args.path}: {_counts(found.statuses)}")
        for one in found.statuses:
            if one.job and one.job.active and one.job.elements.get("failed"):
                count = one.job.elements["failed"]
                print(f"{Path(one.path).name}: {count} elements failed, and those that are left do their work")
        return 0
    places = resubmit(wanted, found, sys.argv, fresh_code=args.fresh_code)
    rows = [("job", "stage", "id", "after")]
    for place in places:
        rows += [(job.name, job.stage, job_ids(job.ids), ", ".join(job.after)) for job in place.read().jobs]
    print(table(rows))
    for place in places:
        print(f"\nsubmission: {place.path}", end="")
    print(f"\nto watch:   hdtrain status {args.path}\nto stop:    hdtrain cancel {args.path}")
    return 0


def _counts(statuses: Sequence[Status]) -> str:
    states = [one.state for one in statuses]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
