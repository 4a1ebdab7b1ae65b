"""`webdataset`: tars in which the members of a sample follow each other as KEY.EXT; hdtrain's own shards are such tars.

KEY goes up to the first dot of the last part of the path (https://github.com/webdataset/webdataset, `base_plus_ext`).
The image is the member `columns.image` (an extension), or the only one with an image's extension. Any other column is
an extension too (`cls`, `txt`: the member's text), else a key of `json`, `a.b` for one inside another. Without
columns, `slide`, `patient`, `x`, `y` and `mpp` are taken from `json` if they stand there; a label only if it is named.

A tar is read from its beginning to its end, so it is one unit; a large one is looked through first and cut.
"""

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hdtrain.errors import DataError
from sharding.inputs import Broken, ByteRange, Content, Input
from sharding.readers.base import Unit, as_text
from sharding.readers.records import RecordReader, field_value, row_input
from sharding.readers.tar_walk import Member, walk
from sharding.readers.tree import LISTED_SUFFIXES

LARGE_BYTES = 2**30
_LOOKED_AT = 64
_UNNAMED = {"slide", "patient", "x", "y", "mpp"}
"""Fields that are taken from `json` without being named."""


@dataclass
class Sample:
    """Members that follow each other and have one key."""

    key: str
    start: int
    """Where its first header begins."""
    members: dict[str, Member] = field(default_factory=dict)
    """By extension, in lower case."""
    doubled: str | None = None
    """An extension that it has twice."""

    @property
    def images(self) -> list[str]:
        """The extensions of images."""
        return [ext for ext in self.members if f".{ext.rpartition('.')[2]}" in LISTED_SUFFIXES]


class Record(NamedTuple):
    """What a sample says of its image."""

    values: dict[str, Any]
    problem: str | None


class WebDatasetReader(RecordReader):
    """A tar, or a folder with tars at any depth."""

    suffixes = frozenset({".tar"})
    kind = "tar"
    large_bytes = LARGE_BYTES
    """Tars from this size on are cut into several units."""
    _bytes_a_sample = 0

    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """The tar whole, its samples estimated by the first tar's; or stretches of bytes that begin at a sample."""
        size = _size(file)
        if size >= self.large_bytes:
            yield from self._cut(path, file, size)
            return
        if not self._bytes_a_sample:
            looked_at = list(islice(samples(walk(file)), _LOOKED_AT + 1))
            if len(looked_at) <= 1:
                self._bytes_a_sample = size
            else:
                self._bytes_a_sample = (looked_at[-1].start - looked_at[0].start) // (len(looked_at) - 1)
        yield Unit(path, 0, None, max(1, size // self._bytes_a_sample))

    def _cut(self, path: str, file: Path, size: int) -> Iterator[Unit]:
        start = count = 0
        for sample in samples(walk(file)):
            if count == self.unit_inputs:
                yield Unit(path, start, sample.start, count)
                start, count = sample.start, 0
            count += 1
        if count:
            yield Unit(path, start, size, count)

    def read(self, unit: Unit) -> Iterator[Input]:
        """Sample by sample; a tar that is truncated is an error after the samples before that place."""
        file = self.file(unit)
        try:
            with file.open("rb", buffering=0) as stream:
                for sample in samples(walk(file, unit.start, unit.stop)):
                    yield self._input(unit, file, sample, stream)
        except OSError as error:
            raise DataError(f"{file}: unreadable: {error.strerror}") from None

    def _input(self, unit: Unit, file: Path, sample: Sample, stream: Any) -> Input:
        ext, content = self._image(file, sample)
        key = as_text(sample.key)
        path = f"{self.shown(unit)}/{as_text(sample.members[ext].name) if ext else key}"
        values, problem = self._record(path, sample, stream)
        return row_input(self.source, path, key, Broken(problem) if problem else content, values)

    def _image(self, file: Path, sample: Sample) -> tuple[str | None, Content]:
        wanted = self.source.config.columns.image
        exts = sample.images
        if wanted is not None:
            exts = [ext for ext in sample.members if ext == wanted.lstrip(".").lower()]
        if not exts:
            return None, Broken("no image in the sample")
        member = sample.members[exts[0]]
        if len(exts) > 1:
            return None, Broken(f"several images in the sample: {', '.join(exts)}")
        if sample.doubled:
            return None, Broken(f"two members of one name in the sample: {sample.doubled}")
        if member.link is not None or not member.is_whole:
            return exts[0], Broken("a link or a sparse member")
        return exts[0], ByteRange(file, member.offset, member.size)

    def _record(self, path: str, sample: Sample, stream: Any) -> Record:
        tree: Any = {}
        if "json" in sample.members:
            try:
                tree = json.loads(_data(stream, sample.members["json"]))
            except ValueError:
                return Record({}, "its json cannot be read")
        values = {}
        for column, name in self.columns.items():
            ext = name.lstrip(".").lower()
            in_member = ext in sample.members and ext != "json"
            values[column] = _data(stream, sample.members[ext]).strip() if in_member else _key_of(tree, name)
        if isinstance(tree, dict):
            for column in _UNNAMED & tree.keys() - self.columns.keys():
                values[column] = self._unasked(path, column, tree[column])
        return Record(values, None)

    def _unasked(self, path: str, column: str, value: Any) -> Any:
        """A value that nobody named: another data set may call something else so, which is passed over."""
        try:
            return field_value(self.source, path, column, value)
        except DataError:
            return None


def samples(members: Iterator[Member]) -> Iterator[Sample]:
    """Members grouped as WebDataset groups them; those without an extension, hidden ones and its own are left out.

    Raises:
        DataError: what `members` raises, after the samples that are complete.
    """
    sample: Sample | None = None
    for member in members:
        folder, name = posixpath.split(member.name)
        base, dot, ext = name.partition(".")
        key = posixpath.join(folder, base)
        if not (base and dot and ext) or key.startswith("__"):
            continue
        if sample is None or key != sample.key:
            if sample:
                yield sample
            sample = Sample(key, member.start)
        if sample.members.setdefault(ext.lower(), member) is not member:
            sample.doubled = ext.lower()
    if sample:
        yield sample


def is_webdataset(file: Path) -> bool:
    """Whether images among the first samples have members beside them; a tar of images alone is an archive."""
    looked_at = islice(samples(walk(file)), _LOOKED_AT)
    return any(sample.images and len(sample.members) > len(sample.images) for sample in looked_at)


def _data(stream: Any, member: Member) -> bytes:
    stream.seek(member.offset)
    data: bytes = stream.read(member.size)
    return data


def _key_of(tree: Any, name: str) -> Any:
    if isinstance(tree, dict) and name in tree:
        return tree[name]
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: unreadable: {error.strerror}") from None
