"""All sources of a config as one sorted list of candidates, with the classes in label order."""

from dataclasses import dataclass

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from sharding.candidate import Candidate, with_unique_keys
from sharding.readers import Reader, open_source


@dataclass(frozen=True)
class Inputs:
    """What the sources hold, sorted by key."""

    candidates: list[Candidate]
    classes: list[str] | None
    names: list[str]


def collect(config: ShardConfig) -> Inputs:
    """List every source.

    Raises:
        DataError: what `open_source` raises; two sources of one name; classes that do not fit the configured ones.
    """
    readers = [open_source(source, config.alpha) for source in config.sources]
    names = [reader.source.name for reader in readers]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{names.count(name)} sources are named '{name}'; give each its own 'name'")
    classes = _classes(readers, config.classes)
    candidates = with_unique_keys([candidate for reader in readers for candidate in reader])
    return Inputs(sorted(candidates, key=lambda candidate: candidate.key), classes, names)


def _classes(readers: list[Reader], wanted: list[str] | None) -> list[str] | None:
    found = {name: reader.source.config.path for reader in readers for name in reader.classes or []}
    if wanted is None:
        return sorted(found) or None
    paths = ", ".join(str(reader.source.config.path) for reader in readers)
    if not found:
        raise DataError(f"{paths}: no class folders, but 'classes' expects {', '.join(wanted)}")
    for name, path in found.items():
        if name not in wanted:
            raise DataError(f"{path}: unknown class folder '{name}'; 'classes' expects {', '.join(wanted)}")
    empty = [name for name in wanted if name not in found]
    if empty:
        raise DataError(f"{paths}: empty class {', '.join(map(repr, empty))}: no such folder in any source")
    return wanted
