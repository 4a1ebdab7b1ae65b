"""The results of a sweep: a row a run, with its keys, how far it is, and its figures on held-out data. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.formatting import MISSING, figure
from hdtrain.reporting.status import Status
from hdtrain.reporting.status_text import state_text
from hdtrain.reporting.tail import number

PREFIX = "validation/"
_LARGEST_BYTES = 1 << 28
_OVER = ("published", "failed", "killed", "cancelled", "will not run")


def add_results(statuses: Sequence[Status]) -> None:
    """Give every run of a sweep its validation figures, and mark the best of each stage.

    The best is the lowest last value of the first figure, which is the loss that `keep_best` goes by too. Figures on
    training data choose nothing.
    """
    runs = [status for status in statuses if status.sweep is not None]
    for status in runs:
        status.validation, status.best = _validation(RunDir(Path(status.path))), False
    for stage in {status.stage for status in runs}:
        measured = [status for status in runs if status.stage == stage and status.validation]
        names = {next(iter(status.validation)) for status in measured if status.validation}
        if len(names) == 1 and len(measured) > 1:
            name = names.pop()
            best = min(measured, key=lambda status: (status.validation or {})[name])
            best.best = True


def sweep_rows(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """A table of a sweep's runs: its head, and a row a run."""
    keys = list(dict.fromkeys(key for status in statuses for key in status.sweep or {}))
    names = list(dict.fromkeys(name for status in statuses for name in status.validation or {}))
    over = all(status.state in _OVER for status in statuses)
    head = ("run", *keys, "state", "images", *(f"{name.removeprefix(PREFIX)} (validation)" for name in names), "")
    rows = [head]
    for status in statuses:
        said, values = status.validation or {}, status.sweep or {}
        mark = ("best" if over else "best so far") if status.best else ""
        rows.append(
            (
                Path(status.path).name.partition("-")[0] if keys else Path(status.path).name,
                *(_value(values[key]) if key in values else "" for key in keys),
                state_text(status),
                f"{status.progress.images:,}" if status.progress else "",
                *(figure(said[name]) if name in said else MISSING for name in names),
                mark,
            )
        )
    return rows


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _validation(run: RunDir) -> dict[str, float]:
    """The last value of each; of a run of several seeds the means over those that have it."""
    parts = [_last(part.metrics) for part in (run, *run.seeds)]
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _last(metrics: Path) -> dict[str, float]:
    """Of one training. Read whole, since validation is rare; a file too large for that has none."""
    found: dict[str, float] = {}
    try:
        if metrics.stat().st_size > _LARGEST_BYTES:
            return {}
        lines = [line for line in metrics.read_bytes().splitlines() if PREFIX.encode() in line]
    except OSError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found |= {
                key: value
                for key, item in row.items()
                if key.startswith(PREFIX) and (value := number(item)) is not None
            }
    return found
