"""`hdtrain status` for people: a page for one run, a table for several."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hdtrain.reporting.formatting import duration, figure, percent
from hdtrain.reporting.run_progress import Progress
from hdtrain.reporting.status import Status

_STATES = {"stopped": "stopped after saving", "killed": "killed without a word"}
_MAX_MESSAGE = 300


def status_rows(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """A table: its head, and a row a run."""
    return [("run", "stage", "state", "done", "images/s", "left", "loss", "last row"), *map(_row, statuses)]


def status_notes(statuses: Sequence[Status]) -> list[str]:
    """A line for every run of which a row doesn't say what is wrong."""
    return [f"{_name(status)}: {_short(words)}" for status in statuses if (words := _words(status))]


def _row(status: Status) -> tuple[str, ...]:
    done = status.progress
    losses = [value for key, value in done.figures.items() if key.startswith("loss/")] if done else []
    busy = status.state in ("running", "hung")
    return (
        _name(status),
        status.stage,
        status.state,
        _share(status),
        f"{done.images_per_sec:,.1f}" if done and done.images_per_sec else "",
        duration(status.seconds_left) if status.seconds_left is not None else "",
        figure(losses[0]) if losses else "",
        f"{duration(done.row_age_sec)} ago" if busy and done and done.row_age_sec is not None else "",
    )


def _name(status: Status) -> str:
    return Path(status.path).name or status.path


def _share(status: Status) -> str:
    done = status.progress
    if done and done.total_images:
        return percent(done.images / done.total_images)
    return f"{status.shards} shards" if status.shards is not None else ""


def _words(status: Status) -> str:
    """What a table's line has no room for."""
    if status.state == "hung" or (status.state != "running" and status.detail):
        return status.detail
    return status.message or "" if status.state == "failed" else ""


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
    if status.progress:
        yield from _progress_facts(status, status.progress)
    for seed, part in status.seeds.items():
        losses = _figures(part, "loss/")
        yield f"seed {seed}", f"step {_of(part.step, part.steps)}{f'; {losses}' if losses else ''}"
    if status.shards is not None:
        yield "shards", f"{status.shards:,}"
    if status.message:
        yield "log says", _short(status.message)
    if status.log:
        yield "log", status.log


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
