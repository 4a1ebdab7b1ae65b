"""Raw data sets to image shards: list, survey, plan, write, index. The story of one `hdtrain shard`.

Any number of processes on any machines share the run directory: each surveys its part of the units and writes its part
of the shards, and rank 0 plans in between. The same input and config give byte-identical shards, however many processes
and threads there were and however often they were killed: the plan is complete before the first shard is begun, a
unit's part is kept while its input is the same, and a shard that is complete under the same plan is kept.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.shards import ShardConfig
from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.world import World
from hdtrain.errors import DataError
from hdtrain.formats.atomic import write_json
from hdtrain.formats.manifest import FieldSpec, ShardEntry
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import shard_entry
from hdtrain.progress import Progress
from sharding.images import Encoding
from sharding.index import write_indices
from sharding.plan import Plan, make_plan, plan_identity
from sharding.readers.base import Reader
from sharding.sources import open_sources
from sharding.survey import Surveyor, list_units, read_units
from sharding.table import STATUS_NAMES, Rows, merge_parts
from sharding.write import Writer, split_dir

SAY_AFTER_SEC = 1.0


@dataclass(frozen=True)
class Packed:
    """One data set that was written, for its manifest."""

    name: str
    run: RunDir
    shards: list[ShardEntry]
    image: FieldSpec
    classes: list[str] | None
    info: dict[str, Any]


def pack(config: ShardConfig, run: RunDir, world: World | None = None, threads: int | None = None) -> list[Packed]:
    """Write shards, sidecars and `index.parquet` into a run directory; every process of `world` calls it.

    Returns:
        One data set a split; on ranks other than 0 nothing.

    Raises:
        DataError: see `open_sources`, `make_plan`; or a file that changed since the survey.
    """
    world = world or World()
    threads = threads or max(1, len(os.sched_getaffinity(0)) // world.size)
    with Rendezvous(run.work / "processes", world) as meeting, ThreadPoolExecutor(threads) as pool:
        return _Packing(config, run, world, meeting, pool).run_all()


@dataclass(frozen=True)
class _Packing:
    config: ShardConfig
    run: RunDir
    world: World
    meeting: Rendezvous
    pool: ThreadPoolExecutor

    def run_all(self) -> list[Packed]:
        started = time.monotonic()
        readers = open_sources(self.config)
        units_file, table = self.run.work / "units.json", self.run.work / "inputs.arrow"
        if self.world.is_main:
            list_units(readers, units_file)
        self.meeting.barrier("listed")
        started = self._say("listed", started)
        num_units = self._survey(readers, units_file)
        self.meeting.barrier("surveyed")
        started = self._say("surveyed", started)
        plan = None
        if self.world.is_main:
            merge_parts(_parts(self.run.work, num_units), table)
            plan = self._plan(Rows(table), readers)
        self.meeting.barrier("planned")
        started = self._say("planned", started)
        names = [reader.source.name for reader in readers]
        if plan is not None:
            write_indices(self.run, Rows(table), plan, names)
            self._say("indexed", started)
        self._write(Writer(Rows(table), self.config, names, self.run, self.pool))
        self.meeting.barrier("written")
        self._say("written", started)
        if plan is None:
            return []
        return _summary(Rows(table), plan, names, self.config, self.run)

    def _survey(self, readers: Sequence[Reader], units_file: Path) -> int:
        """Survey this process's share of the units; return how many there are in all."""
        encoding = Encoding(self.config.alpha, self.config.resize_px, self.config.format, self.config.jpeg_quality)
        surveyor = Surveyor(encoding, self.config.near_duplicates is not None, self.run.work, self.pool)
        units = list(enumerate(read_units(units_file)))
        mine = self.world.share(units)
        total = sum(unit.num_inputs for _, (_, unit) in mine)
        there = _found(self.run.work)
        with Progress(self._title("survey"), total, enabled=self.world.is_main) as progress:
            for number, (source, unit) in mine:
                path = surveyor.part(number, readers[source], unit)
                if path in there.get(number, []):
                    progress.update(unit.num_inputs)
                    continue
                for stale in there.get(number, []):
                    stale.unlink()
                surveyor.survey(path, source, readers[source], unit, lambda: progress.update(1))
        return len(units)

    def _plan(self, rows: Rows, readers: Sequence[Reader]) -> Plan:
        if not len(rows):
            raise DataError(f"{', '.join(str(reader.source.path) for reader in readers)}: no images")
        plan = make_plan(rows, readers, self.config)
        for warning in plan.warnings:
            print(f"warning: {warning}")
        identity = plan_identity(rows, plan, self.config)
        _drop_others(self.run, plan.splits, identity)
        plan.save(self.run.work, identity)
        return plan

    def _write(self, writer: Writer) -> None:
        mine = list(self.world.share(writer.jobs))
        total = sum(len(writer.rows_of(job)) for job in mine)
        with Progress(self._title("pack"), total, enabled=self.world.is_main) as progress:
            writer.write(mine, lambda: progress.update(1))

    def _say(self, what: str, started: float) -> float:
        """A line for long steps; returns the time."""
        now = time.monotonic()
        if self.world.is_main and now - started >= SAY_AFTER_SEC:
            print(f"{what} in {now - started:.1f} s", file=sys.stderr)
        return now

    def _title(self, what: str) -> str:
        return f"{what} (1 of {self.world.size} processes)" if self.world.size > 1 else what


def _found(work: Path) -> dict[int, list[Path]]:
    """The parts and spools that are there, by number of their unit."""
    found: dict[int, list[Path]] = {}
    for path in sorted(work.glob("survey-*")):
        found.setdefault(int(path.name.split("-")[1]), []).append(path)
    return found


def _parts(work: Path, num_units: int) -> list[Path]:
    """Every unit's part, in order. A unit has one: what it had before goes before the new one comes."""
    found = _found(work)
    return [next(path for path in found[number] if path.suffix == ".arrow") for number in range(num_units)]


def _drop_others(run: RunDir, splits: list[str], identity: str) -> None:
    """Remove half-written files, and what is there of another plan; the shards that are left belong to this one."""
    path = run.work / "plan.json"
    same = path.exists() and json.loads(path.read_bytes())["identity"] == identity
    for folder in [run.shards, *run.path.glob("*/shards")]:
        for file in folder.iterdir() if folder.exists() else ():
            if not same or file.name.startswith("."):
                file.unlink()
    if not same:
        write_json(path, {"identity": None})
        for directory in {run.path, *(split_dir(run, splits, name).path for name in splits)}:
            RunDir(directory).manifest.unlink(missing_ok=True)


def _summary(rows: Rows, plan: Plan, names: list[str], config: ShardConfig, run: RunDir) -> list[Packed]:
    width, height = rows.column("width"), rows.column("height")
    label_codes, labels = rows.codes("label")
    statuses = np.bincount(plan.status, minlength=len(STATUS_NAMES)).tolist()
    failed: dict[str, int] = {}
    for counts in plan.failed:
        for shard_counts in counts.values():
            for reason, count in shard_counts.items():
                failed[reason] = failed.get(reason, 0) + count
    common = {
        **{f"num_{name}": count for name, count in zip(STATUS_NAMES[1:], statuses[1:], strict=True)},
        "num_duplicates": int((plan.duplicate_of >= 0).sum()),
        "rejected": dict(sorted(failed.items())),
        "sources": names,
    }
    packed = []
    for name, order in zip(plan.splits, plan.orders, strict=True):
        directory = split_dir(run, plan.splits, name)
        sizes = {(config.resize_px, config.resize_px)} if config.resize_px else _sizes(height[order], width[order])
        shape: list[int | None] = [*next(iter(sizes)), 3] if len(sizes) == 1 else [None, None, 3]
        counts = np.bincount(label_codes[order] + 1, minlength=len(labels) + 1)[1:].tolist()
        by_name = dict(zip(labels, counts, strict=True))
        packed.append(
            Packed(
                name=name,
                run=directory,
                shards=[shard_entry(path, directory.path) for path in sorted(directory.shards.glob("shard-*.tar"))],
                image=FieldSpec(dtype="uint8", shape=shape, range=(0, 255), layout="HWC RGB"),
                classes=plan.classes,
                info={"class_counts": {name: by_name.get(name, 0) for name in plan.classes or []}, **common},
            )
        )
    return packed


def _sizes(height: Any, width: Any) -> set[tuple[int, int]]:
    return {(int(h), int(w)) for h, w in np.unique(np.stack([height, width]), axis=1).T}
