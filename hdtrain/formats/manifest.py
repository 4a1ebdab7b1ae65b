"""`manifest.json`: what a stage published. Written last and atomically; a stage refuses a parent without it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hdtrain.config.base import Config
from hdtrain.errors import ManifestError
from hdtrain.formats.atomic import canonical_json, sha256_bytes, sha256_file, write_json
from hdtrain.formats.run_dir import RunDir

SCHEMA_VERSION = 1


class FieldSpec(Config):
    """One array of a sample: dtype, shape and range as stored."""

    dtype: str
    shape: list[int | None]
    range: tuple[float, float] | None = None
    layout: str = ""


class ShardEntry(Config):
    """One published shard, its path relative to the run directory."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ParentEntry(Config):
    """A parent: where it was, relative to the child's run directory, and the identity it had."""

    path: str
    kind: str
    identity: str


class Manifest(Config):
    """What lies in a run directory, and what it was made from."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    stage: str
    fingerprint: str
    commit: str
    parents: dict[str, ParentEntry] = Field(default_factory=dict)
    fields: dict[str, FieldSpec] = Field(default_factory=dict)
    shards: list[ShardEntry] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)
    """Other published files, relative path to sha256."""
    split: str | None = None
    classes: list[str] | None = None
    protocol: dict[str, Any] | None = None
    """`name` (paper or released_code) and `departures` from it, where the two disagree on the stage."""
    info: dict[str, Any] = Field(default_factory=dict)
    """What the kind needs besides; `docs/formats.md` lists it."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def identity(self) -> str:
        """Hash of the content, not of how, when or where it was made: equal content, equal identity."""
        content = self.model_dump(
            mode="json", include={"kind", "fields", "shards", "files", "split", "classes", "info"}
        )
        return sha256_bytes(canonical_json(content))


def publish(directory: Path, manifest: Manifest) -> None:
    """Make the artefact visible to other stages; everything it names must be on disk already."""
    write_json(RunDir(directory).manifest, manifest.model_dump(mode="json"))


def read_manifest(directory: Path, kinds: tuple[str, ...] = ()) -> Manifest:
    """Read and check a published manifest.

    Args:
        directory: the run directory.
        kinds: manifest kinds that will do; empty takes any.

    Raises:
        ManifestError: not published, not readable, of another schema version, or of another kind.
    """
    path = RunDir(directory).manifest
    try:
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"manifest {path} is not published; {_how_to_publish(directory, kinds)}") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"manifest {path} cannot be read: {error}") from None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"manifest {path} has schema version {version}, this hdtrain reads version {SCHEMA_VERSION}; "
            "publish it again with this version, or use the version that wrote it"
        )
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ManifestError(f"manifest {path} is damaged: {where}: {first['msg']}") from None
    if kinds and manifest.kind not in kinds:
        below = sorted(str(found.parent) for found in directory.glob("*/manifest.json")) if "images" in kinds else []
        hint = f"; its data sets are {', '.join(below)}" if below else ""
        raise ManifestError(f"manifest {path} is of kind '{manifest.kind}', expected {' or '.join(kinds)}{hint}")
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compare the published files with their hashes; for weights, before they are loaded.

    Raises:
        ManifestError: one is missing or altered.
    """
    for name, digest in manifest.files.items():
        path = directory / name
        if not path.is_file() or sha256_file(path) != digest:
            raise _altered(path, directory, manifest)


def check_present(directory: Path, manifest: Manifest) -> None:
    """As `check_files`, for files that are missing: a look at each folder, and no file is read."""
    folders = {path.parent for path in map(Path, manifest.files)}
    there = {path for folder in folders if (directory / folder).is_dir() for path in (directory / folder).iterdir()}
    for name in manifest.files:
        if directory / name not in there:
            raise _altered(directory / name, directory, manifest)


def _altered(path: Path, directory: Path, manifest: Manifest) -> ManifestError:
    return ManifestError(
        f"{path} is missing or altered since it was published; restore it, or move {directory} away "
        f"and make it again with `hdtrain {manifest.stage}`"
    )


def ancestors(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
    """(directory, identity) of everything that an artefact was made from, as far as it is still published."""
    for entry in manifest.parents.values():
        parent = (directory / entry.path).resolve()
        yield parent, entry.identity
        if RunDir(parent).manifest.exists():
            yield from ancestors(parent, read_manifest(parent))


def _how_to_publish(directory: Path, kinds: tuple[str, ...]) -> str:
    """The command that publishes `directory`: from its own run.json if it was begun, else by the kind asked for."""
    run_json = RunDir(directory).run_json
    if run_json.exists():
        stage = json.loads(run_json.read_bytes()).get("stage", "STAGE")
        return f"it was begun: run `hdtrain {stage} {RunDir(directory).config} --out {directory}` to finish it"
    if directory.is_file():
        return f"{directory} is a file, expected a run directory"
    commands = {
        "images": "shard",
        "autoencoder": "train-vae",
        "latents": "encode",
        "embeddings": "embed",
        "denoiser": "train-ldm",
        "prior": "train-prior",
        "grids": "sample-grids",
        "classifier": "train-classifier",
        "sweep": "sweep-guidance",
        "solver-sweep": "sweep-solvers",
        "selection": "select",
        "evaluation": "evaluate",
    }
    names = [commands[kind] for kind in kinds if kind in commands]
    begun = RunDir(directory.parent).run_json.exists()  # a data set of a run that is not finished
    if not begun and directory.is_dir() and any(directory.iterdir()):
        pack = (
            f": `hdtrain shard 'sources=[{{path: {directory}}}]' --out RUN` packs raw images, and RUN is what to name"
        )
        return f"{directory} is a folder of other things, expected a run directory{pack if 'images' in kinds else ''}"
    command = f"hdtrain {names[0]} CONFIG --out {directory}" if names else "the stage that makes it"
    others = " (synthetic images: `hdtrain sample` or `hdtrain select`)" if "images" in kinds else ""
    return f"run `{command}` first{others}"


def relative(path: Path, start: Path) -> str:
    """`path` as seen from `start`, so that a tree of runs can be moved whole."""
    return os.path.relpath(path.resolve(), start.resolve())
