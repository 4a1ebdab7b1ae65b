"""Second pass: copy every sample's bytes from where the survey found them into its shard."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, is_complete
from sharding.images import UnusableError
from sharding.inputs import ByteRange
from sharding.survey import ahead, content_digest
from sharding.table import Rows

_COLUMNS = (
    *("key", "source", "path", "label", "slide", "patient", "x", "y", "mpp", "ext", "width", "height"),
    *("content", "file", "offset", "size", "deflated"),
)


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    split: int
    number: int
    path: Path


@dataclass(frozen=True)
class Writer:
    """Writes planned shards; any process can write any of them and gets the same bytes."""

    rows: Rows
    config: ShardConfig
    source_names: list[str]
    run: RunDir
    pool: ThreadPoolExecutor

    @property
    def jobs(self) -> list[ShardJob]:
        """Every shard of every split."""
        plan = json.loads((self.run.work / "plan.json").read_bytes())
        return [
            ShardJob(split, number, split_dir(self.run, plan["splits"], name).shards / f"shard-{number:06d}.tar")
            for split, name in enumerate(plan["splits"])
            for number in range(-(-len(self._order(split)) // self.config.samples_per_shard))
        ]

    def _order(self, split: int) -> Any:
        return np.load(self.run.work / f"order-{split}.npy", mmap_mode="r")

    def write(self, jobs: list[ShardJob], tick: Callable[[], None]) -> None:
        """Write those that are not complete."""
        plan = json.loads((self.run.work / "plan.json").read_bytes())
        renamed: dict[str, str] = plan["renamed"]
        label_of = {name: index for index, name in enumerate(plan["classes"] or [])}
        todo = [job for job in jobs if not is_complete(job.path)]
        stream = ahead(self.pool, self._load, self._samples(todo))
        for job in todo:
            count = len(self.rows_of(job))
            with ShardWriter(job.path) as writer:
                writer.sidecar.failed = plan["failed"][job.split].get(str(job.number), {})
                for _ in range(count):
                    number, row, payload = next(stream)
                    row["key"] = renamed.get(str(number), row["key"])
                    label = label_of.get(row["label"])
                    meta = sample_meta(row, label, plan["splits"][job.split], self.source_names, self.config.resize_px)
                    writer.add(row["key"], row["ext"], payload, meta, label)
                    tick()

    def rows_of(self, job: ShardJob) -> Any:
        """The row numbers of its samples, in order."""
        size = self.config.samples_per_shard
        return self._order(job.split)[job.number * size : (job.number + 1) * size]

    def _samples(self, jobs: list[ShardJob]) -> Iterator[tuple[int, dict[str, Any]]]:
        for job in jobs:
            numbers = np.asarray(self.rows_of(job))
            yield from zip(numbers.tolist(), self.rows.take(numbers, _COLUMNS), strict=True)

    def _load(self, sample: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any], bytes]:
        """The bytes to store: they must be those that the survey saw."""
        number, row = sample
        place = ByteRange(self.run.work / os.fsdecode(row["file"]), row["offset"], row["size"], row["deflated"])
        try:
            data = place.load()
        except (OSError, UnusableError) as error:
            raise DataError(f"{_where(place)}: could be read in the survey and no longer can: {error}") from None
        if content_digest(data) != row["content"]:
            raise DataError(f"{_where(place)}: changed since the survey; run the stage again when the input is at rest")
        return number, row, data


def _where(place: ByteRange) -> str:
    return f"{place.path} at {place.offset}" if place.offset else os.fspath(place.path)


def split_dir(run: RunDir, splits: list[str], name: str) -> RunDir:
    """A split's own run directory; with one split the stage's."""
    return RunDir(run.path / name) if len(splits) > 1 else run


def sample_meta(
    row: dict[str, Any], label: int | None, split: str, source_names: list[str], resize_px: int | None
) -> dict[str, Any]:
    """`KEY.json`. Squashing a square image scales its mpp; that of another is no longer one number."""
    width, height, mpp = row["width"], row["height"], row["mpp"]
    if resize_px:
        mpp = mpp * width / resize_px if mpp and width == height else None
        width = height = resize_px
    return {
        "key": row["key"],
        "source": source_names[row["source"]],
        "slide": row["slide"],
        "patient": row["patient"],
        "x": row["x"],
        "y": row["y"],
        "mpp": mpp,
        "label": row["label"],
        "class_index": label,
        "split": split,
        "width": width,
        "height": height,
    }
