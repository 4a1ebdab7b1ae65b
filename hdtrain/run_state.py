"""What a run directory holds, compared with what is asked for; and what asking for it there would get wrong.

Nothing is ever deleted: a directory that holds another run is to be renamed to `NAME.previous-<its fingerprint>`; of
one that made nothing the logs stay where they are.
"""

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hdtrain.config.base import Config, InputTree, references
from hdtrain.config.stages import STAGES
from hdtrain.errors import ConfigError, HdtrainError, ManifestError
from hdtrain.formats.fingerprint import fingerprint, missing_raw_data, read_parents
from hdtrain.formats.manifest import Manifest, check_present, read_manifest
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.run_dir import RunDir

_READ_WHOLE = ("autoencoder", "denoiser", "classifier", "prior", "grids", "statistics")
"""Kinds of parents whose files a stage compares with their hashes before it uses them."""


@dataclass(frozen=True)
class State:
    """What a run directory holds, compared with what is asked for."""

    status: Literal["done", "to do", "half done", "changed"]
    fingerprint: str
    """Of the run that is asked for."""
    aside: Path | None = None
    """Where the other run that lies there goes."""
    earlier: Path | None = None
    """A run of this very fingerprint that was moved aside before: it comes back and is done, or goes on."""

    def __str__(self) -> str:
        if self.status == "half done":
            return "half done: it goes on"
        back = f"{self.earlier.name} comes back" if self.earlier else ""
        moved = f"the old run moves to {self.aside.name}" if self.aside else ""
        both = ", ".join(filter(None, [moved, back]))
        return f"changed: {both}" if both else self.status


def inspect(stage: str, config: Config, directory: Path, source: str) -> State:
    """Compare a run directory with what is asked for; its parents must be published.

    Raises:
        ConfigError: a parent is not published, or a weights file is missing.
        ManifestError: the parents do not fit each other, as far as their manifests tell; or a file of one is missing,
            and the run is not done.
        HdtrainError: the directory holds files that are no run's.
    """
    parents = read_parents(config, source)
    state = _compare(stage, config, directory, source, parents)
    if state.status != "done":
        for path, manifest in parents.values():
            if manifest.kind in _READ_WHOLE:
                check_present(path, manifest)
    return state


def _compare(
    stage: str, config: Config, directory: Path, source: str, parents: dict[str, tuple[Path, Manifest]]
) -> State:
    run = RunDir(directory)
    check_place(directory, config, parents)
    if STAGES[stage].check:
        manifests = dict(parents.values())
        importlib.import_module(STAGES[stage].check).check(config, manifests.__getitem__)
    missing = missing_raw_data(config)
    if missing and run.manifest.exists():
        wanted = fingerprint(stage, config, parents, raw_data=False)
        if wanted == read_run_json(run).get("fingerprint_without_raw_data"):  # packed, and then removed to save room
            return State("done", read_manifest(directory).fingerprint)
    if missing:
        raise ConfigError(source, missing)
    wanted = fingerprint(stage, config, parents)
    there = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.exists() else []
    if not there:
        return State("to do", wanted, earlier=_earlier(directory, wanted))
    if not (run.run_json.exists() or run.manifest.exists()):
        raise HdtrainError(
            f"{directory} is not a run directory: it holds {', '.join(sorted(there)[:3])} and no {run.run_json.name}; "
            "give --out a new or an empty folder"
        )
    old = str(read_run_json(run).get("fingerprint", "unknown"))
    published = run.manifest.exists()
    if published:
        with contextlib.suppress(ManifestError):
            old = read_manifest(directory).fingerprint
            if old == wanted:
                return State("done", wanted)
    elif old == wanted:
        return State("half done", wanted)
    earlier = _earlier(directory, wanted)
    if not (published or earlier or _has_made_something(run)):
        return State("to do", wanted)
    return State("changed", wanted, _free_name(directory, old[:8]), earlier)


def _has_made_something(run: RunDir) -> bool:
    """Whether there is anything but logs: where an attempt failed at once, the next one's log comes beside its own."""
    others = set(run.path.iterdir()) - {run.config, run.run_json, run.logs}
    return any(found.is_file() for path in others for found in (path, *path.rglob("*")))


def _earlier(directory: Path, wanted: str) -> Path | None:
    """A run of fingerprint `wanted` that was moved aside; a published one rather than one half done."""
    found = [
        path
        for path in sorted(directory.parent.glob(f"{directory.name}.previous-{wanted[:8]}*"))
        if read_run_json(RunDir(path)).get("fingerprint") == wanted
    ]
    return max(found, key=lambda path: RunDir(path).manifest.exists(), default=None)


def check_place(directory: Path, config: Config, parents: Mapping[str, tuple[Path, Manifest]]) -> None:
    """Raise HdtrainError if the stage would write over what it reads."""
    for dotted, (path, _) in parents.items():
        if path.absolute().is_relative_to(directory.absolute()):
            raise HdtrainError(f"{directory} holds the stage's own parent {dotted} ({path}); give --out another folder")
    for reference in references(config):
        if isinstance(reference.marker, InputTree) and directory.absolute().is_relative_to(reference.path.absolute()):
            raise HdtrainError(
                f"{directory} lies in the raw data of {reference.dotted} ({reference.path}); give --out another folder"
            )
    if directory.exists() and not directory.is_dir():
        raise HdtrainError(f"{directory} is a file; give --out a new or an empty folder")


def published(directory: Path, wanted: str) -> bool:
    """Whether the run of fingerprint `wanted` is published there."""
    with contextlib.suppress(ManifestError):
        return read_manifest(directory).fingerprint == wanted
    return False


def _free_name(directory: Path, old: str) -> Path:
    name, count = directory.with_name(f"{directory.name}.previous-{old}"), 1
    while name.exists():
        count += 1
        name = directory.with_name(f"{directory.name}.previous-{old}-{count}")
    return name
