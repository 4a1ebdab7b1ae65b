"""What a run directory stands for: a hash over the stage's config and its parents' content.

Two runs with the same fingerprint would compute the same thing, so the second is skipped.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hdtrain.config.base import Config, InputFile, InputTree, Kinds, incidental, references
from hdtrain.errors import ConfigError, DataError, ManifestError
from hdtrain.formats.atomic import canonical_json, sha256_bytes, sha256_file
from hdtrain.formats.manifest import Manifest, read_manifest


def read_parents(config: Config, source: str) -> dict[str, tuple[Path, Manifest]]:
    """Every parent that `config` names, by dotted key, with its manifest; weights files are checked to exist.

    Raises:
        ConfigError: one line for every parent that is not published or of a wrong kind, and every missing file.
    """
    parents: dict[str, tuple[Path, Manifest]] = {}
    problems = []
    for reference in references(config):
        if isinstance(reference.marker, Kinds):
            try:
                parents[reference.dotted] = (
                    reference.path,
                    read_manifest(reference.path, reference.marker.kinds),
                )
            except ManifestError as error:
                problems.append(f"{reference.dotted}: {error}")
        elif isinstance(reference.marker, InputFile) and not reference.path.is_file():
            problems.append(f"{reference.dotted}: no such file: {reference.path}")
    if problems:
        raise ConfigError(source, problems)
    return parents


def missing_raw_data(config: Config) -> list[str]:
    """A line for every raw data set that is not there."""
    found = [reference for reference in references(config) if isinstance(reference.marker, InputTree)]
    return [f"{ref.dotted}: no such file or folder: {ref.path}" for ref in found if not ref.path.exists()]


def fingerprint(stage: str, config: Config, parents: dict[str, tuple[Path, Manifest]], raw_data: bool = True) -> str:
    """Hash of the stage's name and its config, every reference replaced by the content's hash.

    Without `raw_data` the listing of raw data is left out: what is still known when the data is gone.
    """
    replaced: dict[str, str] = {dotted: manifest.identity for dotted, (_, manifest) in parents.items()}
    for reference in references(config):
        if isinstance(reference.marker, InputFile):
            replaced[reference.dotted] = sha256_file(reference.path)
        elif isinstance(reference.marker, InputTree):
            by = content_hash if reference.marker.content else listing_hash
            replaced[reference.dotted] = by(reference.path) if raw_data else ""
    tree: Any = config.model_dump(mode="json", exclude=incidental(config))
    for dotted, digest in replaced.items():
        _replace(tree, dotted, digest)
    return sha256_bytes(canonical_json({"stage": stage, "config": tree}))


def listing_hash(path: Path) -> str:
    """Hash over the names and sizes of the files below `path` (its own, if it is a file): new raw data, new run."""
    if path.is_file():
        return sha256_bytes(canonical_json([path.name, path.stat().st_size]))
    digest = hashlib.sha256(canonical_json(path.name))
    for name, size in _files(str(path), ""):
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """Hash over the names below `path` and the files' content; of a file over its content alone."""
    if path.is_file():
        return sha256_file(path)
    return sha256_bytes(canonical_json([[name, sha256_file(path / name)] for name, _ in _files(str(path), "")]))


def _files(folder: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, int]]:
    """(name below the root, bytes) of every file, in the order of the names; half a million a few seconds."""
    state = os.stat(folder)  # noqa: PTH116  a Path for every folder costs more than the call
    if (state.st_dev, state.st_ino) in above:
        raise DataError(f"{folder}: a link to a folder that holds it; remove the link")
    above = (*above, (state.st_dev, state.st_ino))
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _files(entry.path, f"{prefix}{entry.name}/", above)
        elif entry.is_file():
            yield prefix + entry.name, entry.stat().st_size


def _replace(tree: Any, dotted: str, value: str) -> None:
    """Set the leaf at `dotted`. A key of a mapping may hold dots itself (an arm named `selective-0.5`)."""
    keys = range(len(tree)) if isinstance(tree, list) else tree
    key = max((k for k in keys if f"{dotted}.".startswith(f"{k}.")), key=lambda k: len(str(k)))
    if str(key) == dotted:
        tree[key] = value
    else:
        _replace(tree[key], dotted.removeprefix(f"{key}."), value)
