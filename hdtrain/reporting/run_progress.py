"""How far a training is, from the end of `metrics.jsonl`, its config and its checkpoints. No torch."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdtrain.config.batch import BatchPlan
from hdtrain.formats.checkpoint import find_latest
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.tail import number, tail

RATE_ROWS = 5
"""The rate is the median of so many last rows."""


@dataclass
class Checkpoint:
    """The newest one."""

    name: str
    age_sec: float
    best: str | None = None
    """The one with the lowest validation loss."""


@dataclass
class Progress:
    """How far one training is; None: not known."""

    step: int = 0
    steps: int | None = None
    images: int = 0
    total_images: int | None = None
    images_per_sec: float | None = None
    row_age_sec: float | None = None
    """Since the last row of `metrics.jsonl`."""
    figures: dict[str, float] = field(default_factory=dict)
    """The last value of every other figure: losses, `lr`, `grad_norm/…`, `data_wait`, `mfu`."""
    checkpoint: Checkpoint | None = None


def together(parts: Sequence[Progress]) -> Progress:
    """Of several trainings the sums, with the newest one's figures."""
    newest = min(parts, key=lambda part: math.inf if part.row_age_sec is None else part.row_age_sec, default=Progress())
    totals = [part.total_images for part in parts]
    steps = [part.steps for part in parts]
    return Progress(
        step=sum(part.step for part in parts),
        steps=None if None in steps else sum(filter(None, steps)),
        images=sum(part.images for part in parts),
        total_images=None if None in totals else sum(filter(None, totals)),
        images_per_sec=newest.images_per_sec,
        row_age_sec=newest.row_age_sec,
        figures=newest.figures,
        checkpoint=newest.checkpoint,
    )


def read_progress(run: RunDir, config: dict[str, Any], now: float) -> Progress:
    """One training's, from the end of its metrics and its checkpoints."""
    rows = list(_rows(run.metrics))
    merged: dict[str, float] = {}
    for row in rows:
        merged |= row
    rates = [row["images_per_sec"] for row in rows if row.get("images_per_sec", 0) > 0][-RATE_ROWS:]
    images, global_batch = _sizes(config)
    steps = BatchPlan(global_batch, global_batch, 1, 1).num_steps(images) if images and global_batch else None
    return Progress(
        step=int(merged.get("step", 0)),
        steps=steps,
        images=int(merged.get("images", 0)),
        total_images=steps * global_batch if steps and global_batch else None,
        images_per_sec=statistics.median(rates) if rates else None,
        row_age_sec=max(0.0, now - merged["time"]) if "time" in merged else None,
        figures={key: value for key, value in merged.items() if key not in ("step", "images", "time")},
        checkpoint=_checkpoint(run, now),
    )


def _sizes(config: dict[str, Any]) -> tuple[int, int]:
    """`duration.images` and `batch.global_batch_size`; 0 where they are not given."""
    values = []
    for block, key in (("duration", "images"), ("batch", "global_batch_size")):
        inner = config.get(block)
        values.append(max(0, int(number(inner.get(key)) or 0)) if isinstance(inner, dict) else 0)
    return values[0], values[1]


def _rows(path: Path) -> Iterator[dict[str, float]]:
    """The last rows of `metrics.jsonl`, their finite numbers; a line that a kill cut short is passed over."""
    for line in tail(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and number(row.get("step")) is not None:
            yield {key: value for key, item in row.items() if (value := number(item)) is not None}


def _checkpoint(run: RunDir, now: float) -> Checkpoint | None:
    latest = find_latest(run.checkpoints)
    if latest is None:
        return None
    best = tail(run.checkpoints / "best")
    try:
        return Checkpoint(
            latest.name, max(0.0, now - (latest / "meta.json").stat().st_mtime), best[0] if best else None
        )
    except OSError:  # pruned in this moment
        return None
