"""What the tests of classifiers share: a validation set of other images, configs, rows."""

import json
from pathlib import Path
from typing import Any

DURATION = {"log_every_steps": 1, "keep_checkpoints": 100}


def rows(run: Path) -> list[dict[str, Any]]:
    """Of the metrics of the only seed."""
    return [json.loads(line) for line in (run / "seed-0/metrics.jsonl").read_text().splitlines()]


def column(run: Path, name: str) -> dict[int, float]:
    """Step to figure, where it was measured."""
    return {row["step"]: row[name] for row in rows(run) if name in row}


def duration(steps: int, every: int = 1, **changes: Any) -> dict[str, Any]:
    """Of so many steps of four images, validated every so many."""
    return {**DURATION, "images": 4 * steps, "visualise_every_images": 4 * every, **changes}
