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


def validated(steps: int, every: int = 1, **changes: Any) -> dict[str, Any]:
    """Training of so many steps of four images, validated every so many; `changes` of its duration."""
    return {"duration": {**DURATION, "images": 4 * steps, **changes}, "validate_every_images": 4 * every}
