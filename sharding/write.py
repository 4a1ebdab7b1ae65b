"""Second pass: copy every sample's bytes from where the survey found them into its shard."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter
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
    samples: int


@dataclass(frozen=True)
class Writer:
    """Writes planned shards; any process can write any of them and gets the same bytes."""

    rows: Rows
    config: ShardConfig
    source_names: list[str]
    run: RunDir
    pool: ThreadPoolExecutor
    process: str = ""
    """Tells processes apart that may write the same shard."""

    @cached_property
    def jobs(self) -> list[ShardJob]:
        """Every shard of every split."""
        size, splits = self.config.samples_per_shard, self._plan["splits"]
        jobs = []
        for split, name in enumerate(splits):
            count, folder = len(self._order(split)), split_dir(self.run, splits, name).shards
            for number, first in enumerate(range(0, count, size)):
                jobs.append(ShardJob(split, number, folder / f"shard-{number:06d}.tar", min(size, count - first)))
        return jobs

    @cached_property
    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.run.work / "plan.json").read_bytes())
        return plan

    @cached_property
    def _label_of(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._plan["classes"] or [])}

    def _order(self, split: int) -> Any:
        return np.load(self.run.work / f"order-{split}.npy", mmap_mode="r")

    def write(self, job: ShardJob, tick: Callable[[], None], is_planned: Callable[[], bool]) -> None:
        """Write a shard.

        Args:
            job: which.
            tick: called once a sample.
            is_planned: whether the plan still holds, asked before the shard is published.

        Raises:
            DataError: a file that changed since the survey.
        """
        plan = self._plan
        split = plan["splits"][job.split]
        with ShardWriter(job.path, self.process) as writer:
            writer.sidecar.failed = plan["failed"][job.split].get(str(job.number), {})
            for number, row, payload in ahead(self.pool, self._load, self._samples(job)):
                row["key"] = plan["renamed"].get(str(number), row["key"])
                label = self._label_of.get(row["label"])
                meta = sample_meta(row, label, split, self.source_names, self.config.resize_px)
                writer.add(row["key"], row["ext"], payload, meta, label)
                tick()
            if not is_planned():
                raise DataError(
                    "the input changed since the survey, and another process has planned anew; run the stage again "
                    "when the input is at rest"
                )

    def _samples(self, job: ShardJob) -> Iterator[tuple[int, dict[str, Any]]]:
        first = job.number * self.config.samples_per_shard
        numbers = np.asarray(self._order(job.split)[first : first + job.samples])
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
