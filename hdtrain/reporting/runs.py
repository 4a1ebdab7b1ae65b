"""The graph of stages: run directories followed from manifest to manifest, with their records, configs and curves."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.run_dir import RunDir

HIGHLIGHTS = (
    "protocol", "preset", "model.kind", "model.preset", "model.name", "model.augmented_copies", "reader.resolution",
    "duration.images", "batch.global_batch_size", "optim.lr", "engine.precision", "perceptual.kind",
    "classifier_weight", "guidance", "classifier_free", "guidances", "choice", "solver",
    "solver.kind", "solver.steps", "reference.kind", "reference.steps", "per_class", "sample.mode", "sample.per_class",
    "sample.fraction", "max_samples", "ratios", "gates.confidence", "gates.nearest_centroid", "shortfall",
    "encoder.kind", "encoder.name", "bootstrap_resamples",
)  # fmt: skip
"""Config keys worth a column in the table of stages; the whole config stands below it."""

WITH_DATASETS = ("selection", "sweep", "solver-sweep")
"""Kinds whose manifest lists the data sets that were published below the run directory."""


@dataclass(frozen=True)
class Curves:
    """`metrics.jsonl`: scalar name to points (step, value), in the file's order."""

    scalars: dict[str, list[tuple[int, float]]]
    unreadable_lines: int = 0


@dataclass
class Run:
    """One stage's run directory, followed from the evaluation or the selection."""

    directory: Path
    name: str
    """Relative to the folder that all runs share."""
    manifest: Manifest | None
    """None: it was published once, and is not there any more."""
    record: dict[str, Any]
    """`run.json`."""
    config: dict[str, Any]
    config_text: str
    curves: Curves | None
    parents: dict[str, str] = field(default_factory=dict)
    """Dotted config key to run name."""
    datasets: dict[str, int] = field(default_factory=dict)
    """Data sets published below the run directory, with their number of samples."""

    @property
    def stage(self) -> str:
        """As the manifest says."""
        return self.manifest.stage if self.manifest else self.record.get("stage", "unknown")

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Started, ended, status, ranks."""
        attempts: list[dict[str, Any]] = self.record.get("attempts", [])
        return attempts

    @property
    def seconds(self) -> float | None:
        """Wall time of all attempts that recorded their end; None where none did."""
        spans = [attempt["ended"] - attempt["started"] for attempt in self.attempts if "ended" in attempt]
        return sum(spans) if spans else None

    @property
    def unfinished_attempts(self) -> int:
        """Attempts without a recorded end (killed): their time is not in `seconds`."""
        return sum("ended" not in attempt for attempt in self.attempts)

    @property
    def ranks(self) -> list[int]:
        """Distinct numbers of processes, in order of appearance."""
        return list(dict.fromkeys(attempt["ranks"] for attempt in self.attempts if "ranks" in attempt))

    @property
    def num_samples(self) -> int | None:
        """Samples in the run's own shards."""
        return (self.manifest.num_samples or None) if self.manifest else None

    @property
    def commit(self) -> str:
        """Of the code that published it."""
        return self.manifest.commit if self.manifest else self.record.get("commit", "unknown")

    @property
    def highlights(self) -> dict[str, Any]:
        """The keys of `HIGHLIGHTS` that this config holds; of guidance, and of a solver that a sweep chose, what the
        manifest says was used."""
        flat = dict(flatten(self.config))
        if self.manifest and self.stage == "sample":
            flat |= {key: self.manifest.info.get(key) for key in ("guidance", "classifier_free")}
            if flat.get("solver_from"):
                flat |= {"solver": self.manifest.info.get("solver"), "solver.kind": None, "solver.steps": None}
        return {key: flat[key] for key in HIGHLIGHTS if flat.get(key) is not None}

    @property
    def seeds(self) -> dict[str, Any]:
        """Every seed in the config, by dotted key."""
        return {key: value for key, value in flatten(self.config) if key.rpartition(".")[2] in ("seed", "seeds")}


def owner(directory: Path) -> Path:
    """The run directory that published `directory`: itself, or the one above it with the same fingerprint."""
    while (RunDir(directory).manifest.exists() and RunDir(directory.parent).manifest.exists()) and (
        read_manifest(directory).fingerprint == read_manifest(directory.parent).fingerprint
    ):
        directory = directory.parent
    return directory


def parent_directories(directory: Path, manifest: Manifest) -> dict[str, Path]:
    """Dotted config key to the parent's directory as it was named: a run, or a data set below one."""
    return {key: Path(os.path.normpath(directory / entry.path)) for key, entry in manifest.parents.items()}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted key; lists are leaves."""
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            yield from flatten(value, dotted)
        else:
            yield dotted, value


def read_all_curves(run: RunDir) -> Curves | None:
    """The run's curves; of a stage that trained several seeds, theirs one behind the other."""
    found = [curves for part in [run, *run.seeds] if (curves := read_curves(part.metrics))]
    if not found:
        return None
    scalars: dict[str, list[tuple[int, float]]] = {}
    for curves in found:
        for name, points in curves.scalars.items():
            scalars.setdefault(name, []).extend(points)
    return Curves(scalars, sum(curves.unreadable_lines for curves in found))


def read_curves(path: Path) -> Curves | None:
    """Scalars of `metrics.jsonl`, or None where a run has none. Unreadable lines (a killed writer) are counted."""
    if not path.exists():
        return None
    scalars: dict[str, list[tuple[int, float]]] = {}
    unreadable = 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            unreadable += 1
            continue
        for key, value in row.items():
            if key not in ("step", "images", "time") and isinstance(value, int | float):
                scalars.setdefault(key, []).append((step, float(value)))
    return Curves(scalars, unreadable)


def follow(starts: list[Path]) -> tuple[dict[Path, Run], list[str]]:
    """Every run that `starts` came from, by directory, parents before children; and warnings.

    A warning names a parent that is not published any more, or that changed after its child was made.
    """
    walk = _Walk()
    for start in starts:
        walk.visit(owner(start))
    names = _names(list(walk.runs))
    for directory, run in walk.runs.items():
        run.name = names[directory]
        run.parents = {key: names[parent] for key, parent in walk.parents[directory].items()}
    return walk.runs, [f"{names[directory]}: {text}" for directory, text in walk.warnings]


class _Walk:
    """Depth first, so that `runs` holds parents before children."""

    def __init__(self) -> None:
        self.runs: dict[Path, Run] = {}
        self.parents: dict[Path, dict[str, Path]] = {}
        self.warnings: list[tuple[Path, str]] = []

    def visit(self, directory: Path) -> None:
        if directory in self.parents:
            return
        self.parents[directory] = {}
        run = _read_run(directory)
        for key, named in parent_directories(directory, run.manifest).items() if run.manifest else ():
            self._check(directory, run, key, named)
            parent = owner(named)
            self.visit(parent)
            self.parents[directory][key] = parent
        self.runs[directory] = run

    def _check(self, directory: Path, run: Run, key: str, named: Path) -> None:
        assert run.manifest
        if not RunDir(named).manifest.exists():
            self.warnings.append((directory, f"its parent '{key}' ({named.name}) is not published any more"))
        elif read_manifest(named).identity != run.manifest.parents[key].identity:
            self.warnings.append((directory, f"its parent '{key}' ({named.name}) has changed since this was made"))


def _read_run(directory: Path) -> Run:
    files = RunDir(directory)
    manifest = read_manifest(directory) if files.manifest.exists() else None
    text = files.config.read_text() if files.config.exists() else ""
    return Run(
        directory=directory,
        name=directory.name,
        manifest=manifest,
        record=read_run_json(files),
        config=yaml.safe_load(text) or {},
        config_text=text,
        curves=read_all_curves(files),
        datasets={
            name: read_manifest(directory / name).num_samples
            for name in (manifest.info.get("datasets", []) if manifest and manifest.kind in WITH_DATASETS else [])
        },
    )


def _names(directories: list[Path]) -> dict[Path, str]:
    shared = os.path.commonpath([directory.parent for directory in directories])
    return {directory: os.path.relpath(directory, shared) for directory in directories}
