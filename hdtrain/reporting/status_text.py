"""`hdtrain status` for people: a page for one run, a table for several."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hdtrain.reporting.formatting import duration, figure, percent
from hdtrain.reporting.run_progress import Progress
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_job import JobStatus
from hdtrain.reporting.status_painting import painting_facts
from hdtrain.text import counted

_STATES = {"stopped": "stopped; the same command goes on", "killed": "killed without a word"}
_MAX_MESSAGE, _MAX_NAMES = 300, 3


def status_rows(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """A table: its head, and a row a run; with a column of jobs where there are any."""
    head = ("run", "stage", "state", "done", "images/s", "left", "loss", "last row")
    rows = [head, *map(_row, statuses)]
    if not any(status.job for status in statuses):
        return rows
    jobs = ["job", *(job_ids(status.job.ids) if status.job else "" for status in statuses)]
    return [(*row[:2], job, *row[2:]) for row, job in zip(rows, jobs, strict=True)]


def job_ids(ids: Sequence[str]) -> str:
    """`123`, `123_0 … 15`; of the local queue `local`, since its ids are long."""
    if not ids or ids[0].startswith("local:"):
        return f"local × {len(ids)}" if len(ids) > 1 else "local" if ids else "not sent"
    return ids[0] if len(ids) == 1 else f"{ids[0]} … {ids[-1].partition('_')[2] or ids[-1]}"


def status_notes(statuses: Sequence[Status]) -> list[str]:
    """A line for every run of which a row doesn't say what is wrong; one for several of which it is the same."""
    said: dict[str, list[str]] = {}
    for status in statuses:
        if words := _words(status):
            said.setdefault(words, []).append(_name(status))
    return [f"{_several(names)}: {words}" for words, names in said.items()]


def _several(names: Sequence[str]) -> str:
    left = len(names) - _MAX_NAMES
    return ", ".join(names) if left <= 1 else f"{', '.join(names[:_MAX_NAMES])} and {left} more"


def _row(status: Status) -> tuple[str, ...]:
    done = status.progress
    losses = [value for key, value in done.figures.items() if key.startswith("loss/")] if done else []
    busy = status.state in ("running", "hung")
    return (
        _name(status),
        status.stage,
        state_text(status),
        _share(status),
        f"{done.images_per_sec:,.1f}" if done and done.images_per_sec else "",
        duration(status.seconds_left) if status.seconds_left is not None else "",
        figure(losses[0]) if losses else "",
        f"{duration(done.row_age_sec)} ago" if busy and done and done.row_age_sec is not None else "",
    )


def state_text(status: Status) -> str:
    """`running, 3 of 16`, `waiting, requeued 2 times`, `not begun: waits for vae`."""
    job, parts = status.job, [str(status.state)]
    if job is None:
        return status.state
    if job.waits_for:
        parts = [f"{status.state}: {status.detail}"]
    if status.state == "running" and len(job.ids) > 1:
        parts.append(f"{job.elements.get('running', 0)} of {len(job.ids)}")
    if job.cancelled and status.state == "running":
        parts.append("cancelled")
    if job.requeued and job.active:
        parts.append(_requeued(job))
    return ", ".join(parts)


def _requeued(job: JobStatus) -> str:
    return f"requeued {'once' if job.requeued == 1 else f'{job.requeued} times'}"


def _name(status: Status) -> str:
    return Path(status.path).name or status.path


def _share(status: Status) -> str:
    done = status.progress
    if done and done.total_images:
        return percent(done.images / done.total_images)
    if status.painting:
        return percent(status.painting.done_share)
    return counted(status.shards, "shard") if status.shards is not None else ""


def _words(status: Status) -> str:
    """What a table's line has no room for."""
    job = status.job
    if job and status.state in ("failed", "killed"):
        told = ": ".join(filter(None, [status.detail, _short(status.message or "")]))
        return f"{told} (log: {status.log})" if status.log else told
    if job and status.state == "waiting":
        return _wait(status, job)
    if job and job.waits_for:
        return ""
    if status.state == "hung" or (status.state != "running" and status.detail):
        return _short(status.detail)
    return _short(status.message or "") if status.state == "failed" else ""


def _wait(status: Status, job: JobStatus) -> str:
    begins = f"expected to begin at {job.begins.replace('T', ' ')}" if job.begins else ""
    return "; ".join(filter(None, [status.detail, begins]))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]} …"


def status_page(status: Status) -> str:
    """All that is known of one run."""
    lines = [f"{status.path} ({status.stage}): {_headline(status)}"]
    return "\n".join(lines + [f"  {name:<10}  {text}" for name, text in _facts(status)])


def _headline(status: Status) -> str:
    parts = [_STATES.get(status.state, status.state)]
    if status.detail:
        parts[0] += f": {status.detail}" if status.state != "running" else f", {status.detail}"
    if status.ranks and status.state in ("running", "hung"):
        parts.append(f"{status.ranks} rank{'s' if status.ranks > 1 else ''}")
    if status.running_sec is not None:
        parts.append(f"for {duration(status.running_sec)}")
    return ", ".join(parts)


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    if status.job:
        yield from _job_facts(status.job)
    if status.progress:
        yield from _progress_facts(status, status.progress)
    if status.painting:
        yield from painting_facts(status.painting, status.state == "running")
    for seed, part in status.seeds.items():
        losses = _figures(part, "loss/")
        yield f"seed {seed}", f"step {_of(part.step, part.steps)}{f'; {losses}' if losses else ''}"
    if status.shards is not None:
        yield "shards", f"{status.shards:,}"
    if status.message:
        yield "error" if status.job else "log says", _short(status.message)
    if status.log:
        yield "log", status.log


def _job_facts(job: JobStatus) -> Iterator[tuple[str, str]]:
    ago = f"submitted {duration(max(0.0, time.time() - job.submitted))} ago"
    where = [f"on {', '.join(job.nodes)}"] if job.nodes else []
    again = [_requeued(job)] if job.requeued else []
    yield "job", ", ".join([job_ids(job.ids), *where, ago, *again])
    if len(job.ids) > 1 and job.elements:
        yield "elements", f"{', '.join(f'{count} {kind}' for kind, count in job.elements.items())} of {len(job.ids)}"
    if job.begins:
        yield "begins", f"expected at {job.begins.replace('T', ' ')}"
    if not job.reachable:
        yield "queue", "cannot be asked: this is what the files tell"
    yield "submission", job.submission


def _progress_facts(status: Status, done: Progress) -> Iterator[tuple[str, str]]:
    figures = done.figures
    if done.step or done.steps:
        yield "step", _of(done.step, done.steps)
    yield "images", _of(done.images, done.total_images)
    if done.images_per_sec:
        wait = f", {percent(figures['data_wait'])} of the time waiting for data" if "data_wait" in figures else ""
        mfu = f", MFU {percent(figures['mfu'])}" if "mfu" in figures else ""
        yield "speed", f"{done.images_per_sec:,.1f} images/s{wait}{mfu}"
    if status.seconds_left is not None:
        yield "time left", duration(status.seconds_left)
    if done.row_age_sec is not None:
        yield "last row", f"{duration(done.row_age_sec)} ago"
    for name, prefixes in (("loss", ("loss/",)), ("validation", ("validation",)), ("grad norm", ("grad_norm",))):
        text = _figures(done, *prefixes)
        if text:
            yield name, text
    if "lr" in figures:
        yield "lr", f"{figures['lr']:.3g}"
    if done.checkpoint:
        best = f"; best so far {done.checkpoint.best}" if done.checkpoint.best else ""
        yield "checkpoint", f"{done.checkpoint.name}, {duration(done.checkpoint.age_sec)} old{best}"


def _figures(done: Progress, *prefixes: str) -> str:
    """`diffusion 0.123, kl 4.560`."""
    found = {key: value for key, value in done.figures.items() if key.startswith(prefixes)}
    return ", ".join(f"{key.partition('/')[2] or key} {figure(value)}" for key, value in found.items())


def _of(count: int, total: int | None) -> str:
    return f"{count:,} of {total:,} ({percent(count / total)})" if total else f"{count:,}"
