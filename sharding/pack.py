"""Raw data sets to image shards: list, survey, plan, write, index. The story of one `hdtrain shard`.

Any number of processes on any machines share the run directory (`hdtrain.distributed.shared_work`): whoever claims it
lists, plans, or writes the index, a unit of the survey or a shard; the others wait for what they need. The same input
and config give byte-identical shards, however many processes and threads there were and however often they were
killed: the plan is complete before the first shard is begun, a unit's part is kept while its input is the same, and a
shard that is complete under the same plan is kept.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.shards import ShardConfig
from hdtrain.distributed.shared_work import POLL_SEC, SharedRun, SharedUnit
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json, sha256_bytes, write_json
from hdtrain.formats.manifest import FieldSpec, ShardEntry
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import shard_entry, sidecar_path
from sharding.images import Encoding
from sharding.index import index_files, write_indices
from sharding.plan import Plan, make_plan, plan_identity
from sharding.readers.base import Reader, Unit
from sharding.sources import open_sources
from sharding.survey import Surveyor, list_units, read_units
from sharding.table import STATUS_NAMES, Rows, merge_parts
from sharding.write import Writer, split_dir

SAY_AFTER_SEC = 1.0
PLAN = "plan"
"""Name of the claim on planning."""


@dataclass(frozen=True)
class Packed:
    """One data set that was written, for its manifest."""

    name: str
    run: RunDir
    shards: list[ShardEntry]
    image: FieldSpec
    classes: list[str] | None
    info: dict[str, Any]


def pack(config: ShardConfig, run: RunDir, shared: SharedRun | None = None, threads: int | None = None) -> None:
    """Return when shards, sidecars and index are there, whoever made them; `packed` tells then what there is.

    Args:
        config: of the stage.
        run: where they go.
        shared: this process among those that share the work, its `run` being `run`; None: it is alone.
        threads: of this process; None: its share of the cores.

    Raises:
        DataError: see `open_sources`, `make_plan`; or a file that changed since the survey.
        PublishedError: the run is done.
    """
    if shared is None:
        with SharedRun.open(run, World()) as alone:
            pack(config, run, alone, threads)
        return
    threads = threads or max(1, len(os.sched_getaffinity(0)) // shared.world.size)
    with ThreadPoolExecutor(threads) as pool:
        _Packing(config, run, shared, pool, open_sources(config)).make_all()


def packed(run: RunDir) -> list[Packed]:
    """What `pack` has made: one data set a split."""
    found = []
    for data in json.loads((run.work / "summary.json").read_bytes()):
        directory = RunDir(run.path / data["directory"])
        shards = [shard_entry(path, directory.path) for path in sorted(directory.shards.glob("shard-*.tar"))]
        found.append(
            Packed(
                name=data["name"],
                run=directory,
                shards=shards,
                image=FieldSpec(dtype="uint8", shape=data["shape"], range=(0, 255), layout="HWC RGB"),
                classes=data["classes"],
                info=data["info"],
            )
        )
    return found


@dataclass
class _Packing:
    config: ShardConfig
    run: RunDir
    shared: SharedRun
    pool: ThreadPoolExecutor
    readers: list[Reader]
    _plan: Plan | None = None
    """Where this process has planned."""

    def make_all(self) -> None:
        work, started = self.run.work, time.monotonic()
        units_file, planned = work / "units.json", work / "planned.json"
        listed = partial(list_units, self.readers, units_file, self.shared.writer)
        self._one("list", [units_file], lambda: _is_of_attempt(units_file, self.shared.begun_ns), listed)
        started = self._say("listed", started)
        units = read_units(units_file)
        parts = self._survey(units)
        started = self._say("surveyed", started)
        depends = [[path.name for path in parts], self.config.model_dump(mode="json")]
        plan_of = sha256_bytes(canonical_json(depends))
        self._one(PLAN, [planned], lambda: _read(planned).get("of") == plan_of, lambda: self._make_plan(parts, plan_of))
        started = self._say("planned", started)
        if self._plan is not None:  # who has it in memory writes the index before shards, the others after them
            self._index()
        self._write(planned)
        self._index()
        self._say("written", started)

    def _one(self, name: str, files: list[Path], check: Callable[[], bool] | None, make: Callable[[], None]) -> None:
        """Something that one process does, and the others wait for."""
        self.shared.make_all(name, [SharedUnit(name, 0, tuple(files), check)], lambda *_: make())

    def _survey(self, units: Sequence[tuple[int, Unit]]) -> list[Path]:
        """Every unit's part, in order."""
        encoding = Encoding(self.config.alpha, self.config.resize_px, self.config.format, self.config.jpeg_quality)
        looks = self.config.near_duplicates is not None
        surveyor = Surveyor(encoding, looks, self.run.work, self.pool, self.shared.writer)
        parts = _Parts(self.run.work, self.shared.begun_ns)
        earlier = parts.every()

        def make(number: int, _: None) -> None:
            source, unit = units[number]
            path = surveyor.part(number, self.readers[source], unit)
            for stale in earlier.get(number, []):
                if stale.stem != path.stem:
                    stale.unlink(missing_ok=True)
            if path.exists():
                os.utime(path)
            else:
                surveyor.survey(path, source, self.readers[source], unit, lambda: self.shared.saw(1))

        names = [f"survey-{number:06d}" for number in range(len(units))]
        shared = [
            SharedUnit(name, unit.num_inputs, check=partial(parts.has, number))
            for number, (name, (_, unit)) in enumerate(zip(names, units, strict=True))
        ]
        self.shared.make_all("survey", shared, make)
        parts.look()
        return [parts.found[number] for number in range(len(units))]

    def _make_plan(self, parts: Sequence[Path], plan_of: str) -> None:
        writer, work = self.shared.writer, self.run.work
        merge_parts(parts, work / "inputs.arrow", writer)
        rows = Rows(work / "inputs.arrow")
        if not len(rows):
            raise DataError(f"{', '.join(str(reader.source.path) for reader in self.readers)}: no images")
        plan = make_plan(rows, self.readers, self.config)
        for warning in plan.warnings:
            print(f"warning: {warning}")
        identity = plan_identity(rows, plan, self.config)
        if not self.shared.claims.holds(self.shared.prefix + PLAN):  # others may be writing by their plan already
            print("the others took this process for dead while it planned; the same command continues")
            raise SystemExit(STOPPED_EXIT_CODE)
        _drop_others(self.run, plan.splits, identity)
        plan.save(work, writer)
        names = [reader.source.name for reader in self.readers]
        write_json(work / "summary.json", _summary(rows, plan, names, self.config, self.run), writer)
        write_json(work / "planned.json", {"identity": identity, "of": plan_of, "splits": plan.splits}, writer)
        self._plan = plan

    def _index(self) -> None:
        def make() -> None:
            rows = Rows(self.run.work / "inputs.arrow")
            plan = self._plan or make_plan(rows, self.readers, self.config)
            write_indices(self.run, rows, plan, [reader.source.name for reader in self.readers], self.shared.writer)
            self._plan = None

        splits = self._planned()["splits"]
        self._one("index", index_files(self.run, splits), None, make)

    def _planned(self) -> dict[str, Any]:
        """The plan that all go by.

        Raises:
            DataError: it is gone: another has published and cleared up, or plans anew.
        """
        plan = _read(self.run.work / "planned.json")
        if "splits" not in plan:
            raise DataError(f"{self.run.work}: another job is planning anew; the same command continues")
        return plan

    def _write(self, planned: Path) -> None:
        plan = self._planned()
        names = [reader.source.name for reader in self.readers]
        writer = Writer(
            Rows(self.run.work / "inputs.arrow"), self.config, names, self.run, self.pool, self.shared.writer
        )
        units = [
            SharedUnit(f"shard-{job.split}-{job.number:06d}", job.samples, (job.path, sidecar_path(job.path)))
            for job in writer.jobs
        ]

        def make(number: int, _: None) -> None:
            writer.write(writer.jobs[number], lambda: self.shared.saw(1), lambda: _read(planned) == plan)

        self.shared.make_all("pack", units, make)

    def _say(self, what: str, started: float) -> float:
        """A line for long steps; returns the time."""
        now = time.monotonic()
        if self.shared.world.is_main and now - started >= SAY_AFTER_SEC:
            print(f"{what} in {now - started:.1f} s", file=sys.stderr)
        return now


@dataclass
class _Parts:
    """The survey's parts that are known to be right: an older attempt's may be of other input."""

    work: Path
    begun_ns: int
    found: dict[int, Path] = field(default_factory=dict)
    _looked: float = 0.0

    def every(self) -> dict[int, list[Path]]:
        """Every part and spool that is there, by number of its unit."""
        found: dict[int, list[Path]] = {}
        for path in sorted(self.work.glob("survey-*")):
            found.setdefault(int(path.name.split("-")[1]), []).append(path)
        return found

    def look(self) -> None:
        """Which parts this attempt has made, or has looked at and kept."""
        self._looked = time.monotonic()
        for number, paths in self.every().items():
            right = (path for path in paths if path.suffix == ".arrow" and _is_of_attempt(path, self.begun_ns))
            if number not in self.found and (path := next(right, None)):
                self.found[number] = path

    def has(self, number: int) -> bool:
        """Whether a unit's part is there."""
        if number not in self.found and time.monotonic() - self._looked > POLL_SEC:
            self.look()
        return number in self.found


def _is_of_attempt(path: Path, begun_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns >= begun_ns
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return tree


def _drop_others(run: RunDir, splits: list[str], identity: str) -> None:
    """Remove what is there of another plan; the shards that are left belong to this one. The index is written anew."""
    planned = run.work / "planned.json"
    for index in index_files(run, splits):
        index.unlink(missing_ok=True)
    if _read(planned).get("identity") == identity:
        return
    for folder in [run.shards, *run.path.glob("*/shards")]:
        for file in folder.iterdir() if folder.exists() else ():
            file.unlink(missing_ok=True)
    write_json(planned, {"identity": None})
    for directory in {run.path, *(split_dir(run, splits, name).path for name in splits)}:
        RunDir(directory).manifest.unlink(missing_ok=True)


def _summary(rows: Rows, plan: Plan, names: list[str], config: ShardConfig, run: RunDir) -> list[dict[str, Any]]:
    """What `packed` tells, but for the shards."""
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
    found = []
    for name, order in zip(plan.splits, plan.orders, strict=True):
        directory = split_dir(run, plan.splits, name)
        sizes = {(config.resize_px, config.resize_px)} if config.resize_px else _sizes(height[order], width[order])
        shape: list[int | None] = [*next(iter(sizes)), 3] if len(sizes) == 1 else [None, None, 3]
        counts = np.bincount(label_codes[order] + 1, minlength=len(labels) + 1)[1:].tolist()
        by_name = dict(zip(labels, counts, strict=True))
        found.append(
            {
                "name": name,
                "directory": os.path.relpath(directory.path, run.path),
                "shape": shape,
                "classes": plan.classes,
                "info": {"class_counts": {name: by_name.get(name, 0) for name in plan.classes or []}, **common},
            }
        )
    return found


def _sizes(height: Any, width: Any) -> set[tuple[int, int]]:
    return {(int(h), int(w)) for h, w in np.unique(np.stack([height, width]), axis=1).T}
