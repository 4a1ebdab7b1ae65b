"""One input image or tile before it is known to be usable, and its key."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hdtrain.errors import DataError
from sharding.images import encode_png
from sharding.tiles import Tile

MAX_KEY_BYTES = 95
"""`KEY.json` then fits ustar's 100 bytes."""
_HASH_CHARS = 12


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the index to be. `path` is relative to the source, so that a moved data set gives the same shards."""

    key: str
    identity: str
    """Source, path and tile position as they are, from which `key` was made."""
    source: str
    file: Path
    path: str
    slide: str | None = None
    patient: str | None = None
    x: int | None = None
    y: int | None = None
    mpp: float | None = None
    label: str | None = None
    min_tissue: float = 0.0
    tile: Tile | None = None

    def load(self) -> bytes:
        """The file's bytes, or the tile as PNG; raises OSError or UnusableError."""
        return encode_png(self.tile.pixels()) if self.tile else self.file.read_bytes()


def make_key(identity: str, tail: str = "") -> str:
    """A key of ASCII letters, digits, `_` and `-` (no dot: WebDataset cuts there), at most 95 bytes.

    What is too long is cut and given a hash of the whole identity; `tail` (the tile's position) always stays.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", identity)
    return key + tail if len(key) + len(tail) <= MAX_KEY_BYTES else _hashed(key, identity, tail)


def _hashed(key: str, identity: str, tail: str = "") -> str:
    digest = hashlib.sha256((identity + tail).encode()).hexdigest()[:_HASH_CHARS]
    return f"{key[: MAX_KEY_BYTES - len(tail) - _HASH_CHARS - 1]}-{digest}{tail}"


def with_unique_keys(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Give a hash to every one of several candidates whose names differ only in what a key cannot hold.

    Raises:
        DataError: two candidates are the same input.
    """
    counts = Counter(candidate.key for candidate in candidates)
    unique = [c if counts[c.key] == 1 else replace(c, key=_hashed(c.key, c.identity)) for c in candidates]
    counts = Counter(candidate.key for candidate in unique)
    for candidate in unique:
        if counts[candidate.key] > 1:
            raise DataError(f"{candidate.file}: read twice, as key '{candidate.key}'; expected every image once")
    return unique
