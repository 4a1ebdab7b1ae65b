"""Publishing by rename, canonical JSON and content hashes."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_file(path: Path, writer: str = "", at: Callable[[], Path] | None = None) -> Iterator[IO[bytes]]:
    """Write to a temporary name beside `path`; on success fsync and rename, on failure remove. Makes the folder.

    What a killed process left under the temporary name is written over by the next. Where two processes might write the
    same file at once each gives a `writer` of its own; what a kill leaves then, `remove_temporaries` removes. `at` may
    give it another place when it is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{'.' * bool(writer)}{writer}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(at() if at else path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder in which nobody writes any more."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_through(path: Path, write: Callable[[Path], None]) -> None:
    """Publish what `write(temporary)` writes, for libraries that want a file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Publish `source` under a second name; a copy where the file system has no links."""

    def link(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    write_through(target, link)


def sync(path: Path) -> None:
    """Make sure that a file's content is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_bytes(path: Path, data: bytes, writer: str = "") -> None:
    """Write a whole file atomically."""
    with atomic_file(path, writer) as stream:
        stream.write(data)


def canonical_json(value: Any) -> bytes:
    """The same value gives the same bytes: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def write_json(path: Path, value: Any, writer: str = "") -> None:
    """Write indented JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), writer)


def sha256_bytes(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
