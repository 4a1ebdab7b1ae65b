"""Folders of images, in an order that does not depend on the disk: of a folder its images by name, then its folders.

A unit is a stretch of that order. It begins in a folder at an image and goes on into the folders that follow, so units
are of one size whether there are ten folders or a million. `archive` gives zip and tar files the same shape.
"""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hdtrain.errors import DataError
from sharding.inputs import Broken, ByteRange
from sharding.readers.base import UNIT_INPUTS, Unit, as_text

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
FOREIGN_SUFFIXES = frozenset({".bmp", ".gif", ".webp", ".jp2", ".jpx", ".avif", ".heic"})
"""Images that are listed, so that they are rejected and counted instead of overlooked."""
LISTED_SUFFIXES = IMAGE_SUFFIXES | FOREIGN_SUFFIXES
_KEPT_LISTINGS = 3


Stored = ByteRange | Broken
"""The bytes of an image file, or why there are none."""


class Listing(NamedTuple):
    """What lies right in a folder, by name; nothing hidden."""

    folders: list[str]
    files: list[str]
    """Those with one of the suffixes that are asked for."""


class Tree(ABC):
    """Folders and files by their paths relative to the root, '' being the root; names as the disk has them."""

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def listing(self, folder: str) -> Listing:
        """What lies right in the folder; raises DataError where it cannot be read."""

    @abstractmethod
    def contents(self, folder: str, start: int, stop: int) -> Iterator[Stored]:
        """Where the bytes of the folder's files `start` to `stop` lie."""

    @abstractmethod
    def stamps(self, folder: str, start: int, stop: int) -> Iterator[Any]:
        """What tells these files from what they were before, as plain JSON."""

    def walk(self, top: str = "") -> Iterator[str]:
        """`top` and all folders below it."""
        yield top
        for name in self.listing(top).folders:
            yield from self.walk(join(top, name))

    def files(self, top: str = "") -> Iterator[str]:
        """All files in `top` and below it."""
        for folder in self.walk(top):
            for name in self.listing(folder).files:
                yield join(folder, name)

    def units(self, top: str = "", size: int = UNIT_INPUTS) -> Iterator[Unit]:
        """All files in `top` and below it, `size` a unit."""
        begin, taken = ("", 0), 0
        for folder in self.walk(top):
            position, count = 0, len(self.listing(folder).files)
            while position < count:
                if not taken:
                    begin = (folder, position)
                step = min(size - taken, count - position)
                taken, position = taken + step, position + step
                if taken == size:
                    yield _unit(*begin, taken)
                    taken = 0
        if taken:
            yield _unit(*begin, taken)

    def read(self, unit: Unit) -> Iterator[tuple[str, Stored]]:
        """(path, content) of the unit's files; raises DataError where some are no longer there."""
        for folder, start, stop in self._stretches(unit):
            names = self.listing(folder).files[start:stop]
            for name, content in zip(names, self.contents(folder, start, stop), strict=True):
                yield join(folder, name), content

    def state(self, unit: Unit) -> str:
        """A hash of the unit's names, sizes and times of change."""
        digest = hashlib.sha256()
        for folder, start, stop in self._stretches(unit):
            names = self.listing(folder).files[start:stop]
            digest.update(repr([folder, names, *self.stamps(folder, start, stop)]).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _stretches(self, unit: Unit) -> Iterator[tuple[str, int, int]]:
        start, left = unit.start, unit.num_inputs
        for folder in self._walk_from(self._find(unit.path)):
            stop = min(len(self.listing(folder).files), start + left)
            if start < stop:
                yield folder, start, stop
                left -= stop - start
            if not left:
                return
            start = 0
        raise DataError(f"{self.path}: {left} images fewer than were listed; run the stage again when it is at rest")

    def _walk_from(self, folder: str) -> Iterator[str]:
        """`folder` and all that follow it in the order of `walk`."""
        yield from self.walk(folder)
        while folder:
            folder, _, last = folder.rpartition("/")
            for name in self.listing(folder).folders:
                if name > last:
                    yield from self.walk(join(folder, name))

    def _find(self, path: str) -> str:
        """The folder that `as_text` shows as `path`."""
        folder = ""
        for part in path.split("/") if "\\x" in path else ():
            found = [name for name in self.listing(folder).folders if as_text(name) == part]
            folder = join(folder, found[0] if found else part)
        return folder or path


def _unit(folder: str, start: int, count: int) -> Unit:
    return Unit(as_text(folder), start, start + count, count)


def join(folder: str, name: str) -> str:
    """The path of what lies in a folder."""
    return f"{folder}/{name}" if folder else name


def suffix(name: str) -> str:
    """`.png` of `A.PNG`; '' where there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  called for every file


class FolderTree(Tree):
    """A folder on disk. Links are followed; one that leads nowhere is an input that cannot be used."""

    def __init__(self, path: Path, suffixes: frozenset[str] = LISTED_SUFFIXES):
        super().__init__(path)
        self.suffixes = suffixes
        self._kept: OrderedDict[str, Listing] = OrderedDict()

    @cached_property
    def _root(self) -> str:
        return os.fspath(self.path)

    def listing(self, folder: str) -> Listing:
        """What lies right in the folder; the last few are kept."""
        found = self._kept.pop(folder, None) or self._scan(os.path.join(self._root, folder))  # noqa: PTH118
        self._kept[folder] = found
        if len(self._kept) > _KEPT_LISTINGS:
            self._kept.popitem(last=False)
        return found

    def _scan(self, folder: str) -> Listing:
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(name)
                        if entry.is_symlink():
                            _refuse_loop(entry.path)
                    elif suffix(name) in self.suffixes:
                        files.append(name)
                    elif entry.is_symlink() and not entry.is_file():
                        raise DataError(f"{as_text(entry.path)}: a link that leads nowhere; mend or remove it")
        except OSError as error:
            raise DataError(f"{as_text(folder)}: the folder cannot be read: {error.strerror}") from None
        return Listing(sorted(folders), sorted(files))

    def contents(self, folder: str, start: int, stop: int) -> Iterator[Stored]:
        """The files, whole."""
        for path, state in self._stats(folder, start, stop):
            if isinstance(state, OSError):
                yield Broken(f"unreadable: {state.strerror}")
            elif not stat.S_ISREG(state.st_mode):
                yield Broken("not a file")
            else:
                yield ByteRange(Path(path), 0, state.st_size)

    def stamps(self, folder: str, start: int, stop: int) -> Iterator[Any]:
        """Size and time of change of each; None where there is none."""
        for _, state in self._stats(folder, start, stop):
            yield None if isinstance(state, OSError) else (state.st_size, state.st_mtime_ns)

    def _stats(self, folder: str, start: int, stop: int) -> Iterator[tuple[str, os.stat_result | OSError]]:
        for name in self.listing(folder).files[start:stop]:
            path = f"{self._root}/{join(folder, name)}"
            try:
                yield path, os.stat(path)  # noqa: PTH116  no Path object for every file
            except OSError as error:
                yield path, error


def _refuse_loop(link: str) -> None:
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    if os.path.commonpath([target, here]) == target:
        raise DataError(f"{as_text(link)}: a link to a folder that it lies in; remove it")


class FileTree(FolderTree):
    """A single image file, whatever its suffix."""

    def __init__(self, path: Path):
        super().__init__(path.parent)
        self.file = path

    def listing(self, folder: str) -> Listing:
        """The file."""
        return Listing([], [self.file.name])
