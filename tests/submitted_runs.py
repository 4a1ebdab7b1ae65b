"""A recipe without torch to submit, and what `hdtrain status` says until something is so."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE = {
    "name": "demo",
    "out": "runs/demo",
    "stages": {
        "shards": {"stage": "shard", "config": {"sources": [{"path": "raw"}]}},
        "smaller": {"stage": "reshard", "config": {"images": ["@shards"], "samples_per_shard": 2}},
        "smallest": {"stage": "reshard", "config": {"images": ["@smaller"], "samples_per_shard": 1}},
    },
}
OVER = ("published", "failed", "killed", "cancelled", "will not run")


@pytest.fixture
def recipe(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """A recipe without torch, and its images."""
    make_images("raw", 6)
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "demo.yaml"


@pytest.fixture
def states(hdtrain) -> Callable[..., dict[str, Any]]:
    """Name to what `hdtrain status --json` says; `until` such a thing is so."""

    def ask(*paths: object, until: Callable[[dict[str, Any]], bool] = lambda _: True, patience: float = 60) -> Any:
        end = time.monotonic() + patience
        while True:
            rows = json.loads(hdtrain("status", "--json", *paths).out)
            found = {Path(row["path"]).name: row for row in rows}
            if until(found):
                return found
            assert time.monotonic() < end, {name: (row["state"], row["detail"]) for name, row in found.items()}
            time.sleep(0.3)

    return ask


def all_over(found: dict[str, Any]) -> bool:
    return all(row["state"] in OVER and not row["job"]["active"] for row in found.values())


def kinds(found: dict[str, Any]) -> dict[str, str]:
    return {name: row["state"] for name, row in found.items()}
