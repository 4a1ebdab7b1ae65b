"""Where the members of an uncompressed tar lie: its headers alone are read, several times as fast as by `tarfile`.

Understood: ustar, GNU (long names, sizes in base 256) and PAX (names, sizes). A member is only listed when all of it is
in the file, and an archive that stops short is an error after the members before it: nothing is lost in silence.
"""

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hdtrain.errors import DataError
from hdtrain.formats.tar import BLOCK
from sharding.readers.base import as_text

_WINDOW = 4096
"""Read at once: mostly the headers that follow each other, and the small members between them."""
_BEHIND = 64 * 1024
"""Looked at behind the end of the archive: zeros there are padding."""
_EXTRA, _LINKS, _SYMBOLIC_LINK, _FOLDER = b"xgLK", b"12", b"2", b"5"
_PARTIAL = b"SM"
"""GNU: sparse, and continued from another volume."""
_WITHOUT_DATA = b"123456"
_LISTED = b"0\x007" + _LINKS + _FOLDER + _PARTIAL
COMPRESSED = {
    ".gz": "gunzip",
    ".tgz": "gunzip",
    ".bz2": "bunzip2",
    ".tbz2": "bunzip2",
    ".xz": "unxz",
    ".txz": "unxz",
    ".zst": "unzstd",
    ".7z": "7z x",
    ".rar": "unrar x",
}
"""Suffixes of archives that cannot be read at random, and what undoes them."""
_MAGIC = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Member(NamedTuple):
    """A file, link or folder (its name ends in `/`) of a tar."""

    name: str
    """As file names are decoded: bytes that are no UTF-8 as surrogates."""
    start: int
    """Where its headers begin."""
    offset: int
    """Where its data begin."""
    size: int
    link: str | None = None
    """The name of the member that it stands for."""
    is_whole: bool = True
    """False: sparse, or continued from another volume, so that its content is not a range of the tar."""


def compressed(path: Path, command: str) -> DataError:
    """The error for an archive that has to be decompressed first."""
    return DataError(f"{path}: compressed, so it cannot be read at random; decompress it first: {command} '{path}'")


def walk(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """The members whose headers begin in `start` to `stop`, in the order of the archive.

    Raises:
        DataError: not a tar, compressed, damaged or truncated (after the members before that place), or unreadable.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            yield from _Walk(path, stream.fileno()).members(start, stop)
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror}") from None


class _Walk:
    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor
        self.size = os.fstat(descriptor).st_size
        self._window, self._from = b"", 0

    def members(self, start: int, stop: int | None) -> Iterator[Member]:
        offset = start
        extra: dict[str, bytes] = {}
        while stop is None or offset < stop:
            header = self._read(offset, BLOCK)
            if header[:1] == b"\0" and not any(header):
                return self._check_behind(offset)
            self._check(header, offset)
            kind, size, data = header[156:157], self._size(header, extra, offset), offset + BLOCK
            if kind == b"S":
                data = self._behind_the_map(header[482], data)
            offset = data if kind in _WITHOUT_DATA else data + size + -size % BLOCK
            if offset > data and data + size > self.size:
                name = as_text(_text(_name(header, extra)))
                raise self._truncated(f"in the middle of '{name}', which begins at byte {start}")
            if kind in _EXTRA:
                extra |= self._extra(kind, data, size)
                continue
            if kind in _LISTED:
                yield _member(header, kind, extra, (start, data, size))
            start, extra = offset, {}

    def _behind_the_map(self, is_extended: int, data: int) -> int:
        """Where the data of an old GNU sparse member begin: behind further blocks with its map."""
        while is_extended:
            is_extended = self._read(data, BLOCK)[504]
            data += BLOCK
        return data

    def _read(self, offset: int, size: int) -> bytes:
        begin = offset - self._from
        if begin < 0 or begin + size > len(self._window):
            self._window, self._from, begin = os.pread(self.descriptor, max(size, _WINDOW), offset), offset, 0
        found = self._window[begin : begin + size]
        if len(found) < size:
            raise self._truncated("without the blocks that end an archive")
        return found

    def _check(self, header: bytes, offset: int) -> None:
        """The checksum of a header, the only thing that tells it from other data."""
        try:
            wanted = int(header[148:156].split(b"\0")[0] or b"0", 8)
        except ValueError:
            wanted = -1
        if wanted == sum(header) - sum(header[148:156]) + 8 * 0x20:
            return
        command = next((command for magic, command in _MAGIC.items() if header.startswith(magic)), None)
        if offset == 0 and command:
            raise compressed(self.path, command)
        where = "not a tar" if offset == 0 else f"damaged: no header of a member at byte {offset}"
        raise DataError(f"{self.path}: {where}; copy or download it again")

    def _size(self, header: bytes, extra: dict[str, bytes], offset: int) -> int:
        field = header[124:136]
        try:
            if "size" in extra:
                return int(extra["size"])
            if field[0] == 0x80:
                return int.from_bytes(field[1:], "big")
            return int(field.split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            raise DataError(f"{self.path}: damaged: no size in the header at byte {offset}") from None

    def _extra(self, kind: bytes, data: int, size: int) -> dict[str, bytes]:
        """What a PAX or GNU header says of the member after it; a global one (`g`) says nothing that counts."""
        content = self._read(data, size)
        if kind in b"LK":
            return {"path" if kind == b"L" else "linkpath": content.partition(b"\0")[0]}
        records = {}
        while kind == b"x" and content:
            length = content.partition(b" ")[0]
            if not length.isdigit() or not int(length):
                raise DataError(f"{self.path}: damaged: no PAX record at byte {data}")
            key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
            records[key.decode("utf-8", "replace")] = value
            content = content[int(length) :]
        return records

    def _check_behind(self, offset: int) -> None:
        behind = self._read(offset, min(_BEHIND, self.size - offset))
        if any(behind):
            raise DataError(
                f"{self.path}: more data behind the end of the archive at byte {offset}: tars that were joined end to "
                "end; give each as a file of its own"
            )

    def _truncated(self, how: str) -> DataError:
        return DataError(f"{self.path}: truncated: it ends at byte {self.size} {how}; copy or download it again")


def _member(header: bytes, kind: bytes, extra: dict[str, bytes], place: tuple[int, int, int]) -> Member:
    name = _text(_name(header, extra))
    if kind == _FOLDER or name.endswith("/"):
        return Member(name.rstrip("/") + "/", *place)
    link = None
    if kind in _LINKS:
        link = _text(extra.get("linkpath") or header[157:257].partition(b"\0")[0])
        link = posixpath.join(posixpath.dirname(name), link) if kind == _SYMBOLIC_LINK else link
    is_whole = kind not in _PARTIAL and not any(key.startswith("GNU.sparse") for key in extra)
    return Member(name, *place, link, is_whole)


def _name(header: bytes, extra: dict[str, bytes]) -> bytes:
    if "path" in extra:
        return extra["path"]
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _text(name: bytes) -> str:
    return os.fsdecode(name)
