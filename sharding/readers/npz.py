"""`npz`: images as rows of an array in an `.npz` file, as in ADM's sample and reference batches (`arr_0`, uint8 NHWC).

An array that is stored as it is (`np.savez`) is mapped where it lies. One that is compressed (`np.savez_compressed`) is
inflated from its beginning, a slab at a time; the next unit goes on where the last one ended.
"""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hdtrain.errors import DataError
from sharding.inputs import Input
from sharding.readers.arrays import ArrayImage, is_image_shape, slabs
from sharding.readers.base import Source, Unit, ranges
from sharding.readers.records import RecordReader, row_input, row_number, stem_prefix

IMAGES = "arr_0"
_SKIP_BYTES = 16 * 2**20
_LOCAL_HEADER_BYTES = 30
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class NpzReader(RecordReader):
    """An `.npz` file, or a folder of them: the array `arr_0` (or `columns.image`), or the only one of images."""

    suffixes = frozenset({".npz"})
    kind = ".npz"

    def __init__(self, source: Source):
        super().__init__(source)
        self._streams: dict[Path, tuple[int, IO[bytes]]] = {}
        """Compressed arrays that are being read, and the row that comes next."""

    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """Raises DataError for a file without images, or columns that do not fit them."""
        member = self._images(file)
        for field, name in self.columns.items():
            column = self._column(file, name)
            if column.size != member.rows or column.shape[:1] != (member.rows,):
                raise DataError(
                    f"{file}: array '{name}' of shape {column.shape} as the {field}; expected one value for each of "
                    f"the {member.rows} images"
                )
        yield from ranges(path, member.rows, self.unit_inputs)

    def read(self, unit: Unit) -> Iterator[Input]:
        """Slab by slab."""
        file, prefix = self.file(unit), stem_prefix(unit)
        member = self._images(file)
        columns = {field: self._column(file, name) for field, name in self.columns.items()}
        for start, stop in slabs(unit.start, min(unit.stop or member.rows, member.rows), member.row_bytes):
            for row, image in enumerate(self._slab(file, member, start, stop), start):
                number = row_number(row, member.rows)
                stem = f"{prefix}-{number}" if prefix else number
                values = {field: column[row] for field, column in columns.items()}
                content = ArrayImage(image, self.source.alpha)
                yield row_input(self.source, f"{self.shown(unit)}[{row}]", stem, content, values)

    def _images(self, file: Path) -> "Member":
        members = list_arrays(file)
        wanted = self.source.config.columns.image or images_of(members)
        if wanted is None or wanted not in members:
            raise DataError(
                f"{file}: no array of images; expected '{wanted or IMAGES}' of shape (images, height, width, 3), found "
                f"{describe_arrays(members)}"
            )
        member = members[wanted]
        if not is_image_shape(member.shape) or member.dtype.kind not in "fiu" or member.is_fortran:
            raise DataError(
                f"{file}: {describe_arrays({wanted: member})}; expected numbers of shape (images, height, width, 3)"
            )
        return member

    def _column(self, file: Path, name: str) -> NDArray[Any]:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except _UNREADABLE as error:
            raise DataError(f"{file}: array '{name}', which 'columns' names, cannot be read: {error}") from None

    def _slab(self, file: Path, member: "Member", start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, in memory."""
        shape = (stop - start, *member.shape[1:])
        try:
            if member.offset is not None:
                at = member.offset + start * member.row_bytes
                return np.array(np.memmap(file, member.dtype, "r", at, shape))
            row, stream = self._streams.pop(file, (0, None))
            if stream is None or row > start:
                row, stream = 0, member.open()
            _skip(stream, (start - row) * member.row_bytes)
            data = stream.read((stop - start) * member.row_bytes)
            self._streams[file] = stop, stream
            return np.frombuffer(data, member.dtype).reshape(shape)
        except _UNREADABLE as error:
            raise DataError(
                f"{file}: damaged or truncated: images {start} to {stop - 1} of '{member.name}' cannot be read: {error}"
            ) from None


class Member:
    """One array of an `.npz`: what its header says, and where its data lie if they are not compressed."""

    def __init__(self, file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo):
        self.file, self.info, self.name = file, info, info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            self.shape, self.is_fortran, self.dtype = _header(stream)
            self._header_bytes = stream.tell()
        self.offset: int | None = None
        """Of the data in the file; None where they are compressed."""
        if info.compress_type == zipfile.ZIP_STORED:
            with file.open("rb") as raw:
                raw.seek(info.header_offset + _LOCAL_HEADER_BYTES - 4)
                lengths = raw.read(4)
            names = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            self.offset = info.header_offset + _LOCAL_HEADER_BYTES + names + self._header_bytes

    @property
    def rows(self) -> int:
        """Length of its first axis."""
        return self.shape[0] if self.shape else 0

    @property
    def row_bytes(self) -> int:
        """Of one row, inflated."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def open(self) -> IO[bytes]:
        """The data, inflated, from the first row on."""
        stream = zipfile.ZipFile(self.file).open(self.info)  # noqa: SIM115  read on by the next unit
        _skip(stream, self._header_bytes)
        return stream


def list_arrays(file: Path) -> dict[str, Member]:
    """The arrays of an `.npz` by name; only their headers are read.

    Raises:
        DataError: no `.npz`, truncated, or pickled.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            named = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {member.name: member for member in (Member(file, archive, info) for info in named)}
    except _UNREADABLE as error:
        raise DataError(f"{file}: not an .npz of arrays, or truncated: {error}") from None


def images_of(members: dict[str, Member]) -> str | None:
    """The array that holds images: `arr_0`, else the only one of the right shape."""
    fitting = [name for name, member in members.items() if is_image_shape(member.shape)]
    return IMAGES if IMAGES in members else fitting[0] if len(fitting) == 1 else None


def describe_arrays(members: dict[str, Member]) -> str:
    """Names, types and shapes."""
    return ", ".join(f"'{name}' {member.dtype} {member.shape}" for name, member in members.items()) or "no array"


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"array format {version}")
    return read[version](stream)


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        count -= len(stream.read(min(count, _SKIP_BYTES))) or count
