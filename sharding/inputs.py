"""One image as a reader finds it: what it is called, what is known of it, and where its content lies."""

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sharding.images import Pixels, UnusableError

MAX_KEY_BYTES = 95
"""`KEY.json` then fits ustar's 100 bytes."""
_HASH_CHARS = 12


class Content(Protocol):
    """Where an input's image comes from. Loaded once, in a thread, in the survey."""

    def load(self) -> bytes | Pixels:
        """An encoded image file as bytes, or decoded uint8 RGB pixels; raises OSError or UnusableError."""
        ...


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a file that lies there anyway. Such content is packed from where it lies, never copied in between."""

    path: Path
    offset: int
    size: int
    deflated: bool = False
    """A member of a zip archive, compressed."""

    def load(self) -> bytes:
        """Read (and inflate) the bytes; a file that ends too early is damaged."""
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise UnusableError("truncated or damaged")
        if not self.deflated:
            return data
        try:
            return zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error:
            raise UnusableError("truncated or damaged") from None


@dataclass(frozen=True, slots=True)
class Held:
    """Content that the reader already has in memory: the bytes of an image file, or pixels."""

    content: bytes | Pixels

    def load(self) -> bytes | Pixels:
        """What is held."""
        return self.content


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands for what cannot be opened, so that it is counted like any other bad input."""

    reason: str

    def load(self) -> bytes:
        """Raise the reason."""
        raise UnusableError(self.reason)


@dataclass(frozen=True, slots=True)
class Input:
    """One row of the index to be. `path` is relative to the source, so that a moved data set gives the same shards."""

    path: str
    """Where the source has it: a file, an archive's member, `images.npy[17]`."""
    stem: str
    """What its key is made of: mostly `path` without the suffix."""
    content: Content
    label: str | None = None
    slide: str | None = None
    patient: str | None = None
    x: int | None = None
    """Position in the slide, in pixels of its finest level."""
    y: int | None = None
    mpp: float | None = None
    """Micrometres a pixel of the image itself."""
    tail: str = ""
    """A tile's position, which stands whole at the end of its key."""
    min_tissue: float = 0.0
    """Less tissue than this share makes it background."""
    is_background: bool = False
    """The reader has already seen that it is; its content is never loaded."""


def make_key(source: str, stem: str, tail: str = "") -> str:
    """A key of ASCII letters, digits, `_` and `-` (no dot: WebDataset cuts there), at most 95 bytes.

    What is too long is cut and given a hash of the whole name; `tail` always stays.
    """
    name = f"{source}_{stem}"
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return key + tail if len(key) + len(tail) <= MAX_KEY_BYTES else hashed_key(key, name, tail)


def hashed_key(key: str, name: str, tail: str = "") -> str:
    """`key`, cut, with a hash of `name`: for names that differ only in what a key cannot hold."""
    digest = hashlib.sha256((name + tail).encode()).hexdigest()[:_HASH_CHARS]
    return f"{key[: MAX_KEY_BYTES - len(tail) - _HASH_CHARS - 1]}-{digest}{tail}"


def key_hash(key: str) -> int:
    """64 bits of a key, to find equal ones among millions; those that are found must be compared themselves."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
