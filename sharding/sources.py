"""All sources of a config, opened, with the classes that are known before anything is read."""

from collections.abc import Iterable
from pathlib import Path

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from sharding.readers import open_source
from sharding.readers.base import Reader


def open_sources(config: ShardConfig) -> list[Reader]:
    """Open every source.

    Raises:
        DataError: what `open_source` raises; two sources of one name; class folders that do not fit `classes`.
    """
    readers = [open_source(source, config.alpha) for source in config.sources]
    names = [reader.source.name for reader in readers]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{names.count(name)} sources are named '{name}'; give each its own 'name'")
    _check_folders(readers, config.classes)
    return readers


def _check_folders(readers: list[Reader], wanted: list[str] | None) -> None:
    """Class folders against the configured classes, where no source names its classes image by image."""
    if wanted is None or any(reader.source.config.columns.label for reader in readers):
        return
    found = {name: reader.source.path for reader in readers for name in reader.classes or []}
    paths = ", ".join(str(reader.source.path) for reader in readers)
    if not found:
        raise DataError(f"{paths}: no class folders, but 'classes' expects {', '.join(wanted)}")
    for name, path in found.items():
        if name not in wanted:
            raise DataError(f"{path}: unknown class folder '{name}'; 'classes' expects {', '.join(wanted)}")
    empty = [name for name in wanted if name not in found]
    if empty:
        raise DataError(f"{paths}: empty class {', '.join(map(repr, empty))}: no such folder in any source")


def class_names(labels: Iterable[str], readers: list[Reader], wanted: list[str] | None) -> list[str] | None:
    """The classes in label order, from the labels of the inputs and from class folders; None: unlabelled.

    In the order of their names, or of their numbers where all are numbers.

    Raises:
        DataError: a label that is not among the configured ones.
    """
    found = {*labels, *(name for reader in readers for name in reader.classes or [])}
    if wanted is None:
        return sorted(found, key=int if all(name.isdecimal() for name in found) else None) or None
    unknown = sorted(found - set(wanted))
    if unknown:
        paths = ", ".join(str(Path(reader.source.path)) for reader in readers)
        named = ", ".join(map(repr, unknown))
        raise DataError(f"{paths}: unknown class {named}; 'classes' expects {', '.join(wanted)}")
    return wanted
