"""Zip and tar archives of images as trees, read where they lie: no image is unpacked to disk.

A folder that holds everything (`NCT-CRC-HE-100K/` in NCT-CRC-HE-100K.zip) is skipped, so an archive gives the same
inputs as the folder that was packed. What macOS adds (`__MACOSX`, `._NAME`) and hidden entries are left out. Of two
members of one name the later counts, as when it is unpacked.
"""

import os
import posixpath
import stat
import struct
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hdtrain.errors import DataError
from sharding.images import UnusableError
from sharding.inputs import Broken, ByteRange
from sharding.readers.base import as_text, file_state
from sharding.readers.tar_walk import COMPRESSED, compressed, walk
from sharding.readers.tree import LISTED_SUFFIXES, FileTree, FolderTree, Listing, Stored, Tree, suffix

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}
_KEPT_ARCHIVES = 2


class Place(NamedTuple):
    """Where a member lies: of a tar its data, of a zip its local header, behind which the data follow."""

    offset: int
    size: int
    crc: int = -1
    """CRC-32 of the image; −1: not known."""
    deflated: int = 0


class _Folder:
    """The folders and images right in one folder of an archive, by name."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.found: dict[str, Place | str] = {}
        """Where each image lies, or why it cannot be read; only while the archive is being listed."""

    def close(self) -> None:
        self.listing = Listing(sorted(self.folders), sorted(self.found))
        places = [self.found[name] for name in self.listing.files]
        self.broken = {index: place for index, place in enumerate(places) if isinstance(place, str)}
        whole = [Place(0, 0) if isinstance(place, str) else place for place in places]
        self.places: NDArray[np.int64] = np.array(whole, np.int64).reshape(-1, len(Place._fields))
        self.folders, self.found = set(), {}


class ArchiveTree(Tree):
    """A tree of which every folder is known beforehand: about 150 bytes of memory an image."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.others: dict[str, str] = {}
        """By suffix, the first member that is no image."""
        self._folders: dict[str, _Folder] = {"": _Folder()}
        for name, place in self._members():
            self._add(name, place)
        self._skip_common_folder()
        for folder in self._folders.values():
            folder.close()

    @abstractmethod
    def _members(self) -> Iterator[tuple[str, Place | str]]:
        """(name, place or what is wrong with it); the names of folders end in `/`. Raises DataError."""

    def _add(self, name: str, place: Place | str) -> None:
        folder, last = _split(name)
        if any(part == "__MACOSX" or (part[:1] == "." and part != "..") for part in (*folder.split("/"), last)):
            return
        self._make_folder(folder)
        if suffix(last) in LISTED_SUFFIXES:
            self._folders[folder].found[last] = place
        elif last:
            self.others.setdefault(suffix(last), name)

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            parent, _, name = folder.rpartition("/")
            self._make_folder(parent)
            self._folders[parent].folders.add(name)
            self._folders[folder] = _Folder()

    def _skip_common_folder(self) -> None:
        top = self._folders[""]
        if len(top.folders) == 1 and not top.found:
            (common,) = top.folders
            inside = {name: folder for name, folder in self._folders.items() if f"{name}/".startswith(f"{common}/")}
            self._folders = {name[len(common) + 1 :]: folder for name, folder in inside.items()}

    def listing(self, folder: str) -> Listing:
        """What lies right in the folder."""
        if folder not in self._folders:
            raise DataError(f"{self.path}: no longer has a folder '{as_text(folder)}'; run the stage again")
        return self._folders[folder].listing

    def contents(self, folder: str, start: int, stop: int) -> Iterator[Stored]:
        """The ranges of the archive where the images lie."""
        held = self._folders[folder]
        places = (Place(*row) for row in held.places[start:stop].tolist())
        for index, content in enumerate(self._ranges(places), start):
            yield Broken(held.broken[index]) if index in held.broken else content

    @abstractmethod
    def _ranges(self, places: Iterator[Place]) -> Iterator[Stored]:
        """The contents that lie there."""

    def stamps(self, folder: str, start: int, stop: int) -> Iterator[Any]:
        """Size and time of change of the whole archive."""
        yield file_state(self.path)


class TarTree(ArchiveTree):
    """An uncompressed tar."""

    def _members(self) -> Iterator[tuple[str, Place | str]]:
        links: dict[tuple[str, str], tuple[str, str]] = {}
        for member in walk(self.path):
            if member.link is None:
                yield member.name, Place(member.offset, member.size) if member.is_whole else "sparse member"
            else:
                links[_split(member.name)] = _split(member.link)
        for link, target in links.items():
            seen = {link}
            while target in links and target not in seen:
                seen.add(target)
                target = links[target]
            folder, last = target
            found = self._folders[folder].found if folder in self._folders else {}
            yield "/".join(link), found.get(last, "a link to what is not in the archive")

    def _ranges(self, places: Iterator[Place]) -> Iterator[Stored]:
        for place in places:
            yield ByteRange(self.path, place.offset, place.size)


@dataclass(frozen=True, slots=True)
class ZipMember(ByteRange):
    """A member of a zip archive, checked against the checksum that the archive has of it."""

    crc: int = -1

    def load(self) -> bytes:
        """Read, inflate and check."""
        data = ByteRange.load(self)
        if zlib.crc32(data) != self.crc:
            raise UnusableError("truncated or damaged")
        return data


class ZipTree(ArchiveTree):
    """A zip archive, its members stored or deflated."""

    def _members(self) -> Iterator[tuple[str, Place | str]]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except OSError as error:
            raise DataError(f"{self.path}: unreadable: {error.strerror}") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise DataError(
                f"{self.path}: not a zip archive, or a truncated one: {error}; copy or download it again"
            ) from None
        for member in members:
            name = member.filename
            yield name if "/" in name else name.replace("\\", "/"), _zip_place(member)

    def _ranges(self, places: Iterator[Place]) -> Iterator[Stored]:
        # The name and the extra field may be longer in the local header than in the directory at the archive's end.
        with _open(self.path) as stream:
            for place in places:
                header = os.pread(stream.fileno(), _LOCAL_HEADER.size, place.offset)
                if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                    yield Broken("truncated or damaged")
                    continue
                _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
                offset = place.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
                yield ZipMember(self.path, offset, place.size, bool(place.deflated), place.crc)


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror}") from None


def _split(name: str) -> tuple[str, str]:
    """(folder, last part) of a member's name; the last part of a folder's is ''."""
    path = posixpath.normpath(name).strip("/")
    if path == ".":
        return "", ""
    return (path, "") if name.endswith("/") else posixpath.split(path)


def _zip_place(member: zipfile.ZipInfo) -> Place | str:
    if member.flag_bits & 1:
        return "encrypted"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link in a zip archive"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"unsupported compression: {_METHODS.get(member.compress_type, member.compress_type)}"
    deflated = member.compress_type == zipfile.ZIP_DEFLATED
    return Place(member.header_offset, member.compress_size, member.CRC, int(deflated))


def is_archive(path: Path) -> bool:
    """Whether a file is to be read as a zip or tar archive, by its suffix; raises DataError for compressed tars."""
    command = COMPRESSED.get(suffix(path.name))
    if command:
        raise compressed(path, command)
    return suffix(path.name) in (".zip", ".tar")


def open_tree(path: Path) -> Tree:
    """A folder, a zip or tar archive, or a single image file.

    Raises:
        DataError: the archive is compressed as a whole, damaged, truncated or unreadable.
    """
    if path.is_dir():
        return FolderTree(path)
    return _open_archive(path, str(file_state(path))) if is_archive(path) else FileTree(path)


@lru_cache(_KEPT_ARCHIVES)
def _open_archive(path: Path, state: str) -> Tree:
    return ZipTree(path) if suffix(path.name) == ".zip" else TarTree(path)
