"""`hdf5`: images as rows of a data set, as in PathologyGAN's `hdf5_vgh_nki_he_{train,test}.h5`.

The images are the data set `columns.image`, or the only one of shape (N, h, w, 1, 3 or 4) and type uint8 or uint16;
PathologyGAN's is `train_img` (N, 224, 224, 3). Other columns are data sets of N values. Where files of one source call
them differently (`train_labels`, `test_labels`), a name may hold `*`, if it fits one data set a file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hdtrain.errors import DataError
from sharding.inputs import Broken, Content, Input
from sharding.readers.arrays import ArrayImage, is_image_shape, slabs
from sharding.readers.base import Unit, ranges
from sharding.readers.records import RecordReader, row_input, row_number, stem_prefix


class Hdf5Reader(RecordReader):
    """An HDF5 file, or a folder with such files at any depth."""

    suffixes = frozenset({".h5", ".hdf5", ".he5", ".hdf"})
    kind = "HDF5"

    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """Raises DataError where it is not plain which data set holds the images, or a column does not fit them."""
        with _opened(file) as opened:
            images = self._images(file, opened)
            self._columns(file, opened, images)
            yield from ranges(path, len(images), self.unit_inputs)

    def read(self, unit: Unit) -> Iterator[Input]:
        """Slab by slab."""
        file = self.file(unit)
        with _opened(file) as opened:
            images = self._images(file, opened)
            columns = self._columns(file, opened, images)
            name, count = images.name.lstrip("/"), len(images)
            prefix = "/".join(part for part in (stem_prefix(unit), name) if part)
            row_bytes = int(np.prod(images.shape[1:])) * images.dtype.itemsize
            chunk_rows = images.chunks[0] if images.chunks else 1
            for start, stop in slabs(unit.start, min(unit.stop or count, count), row_bytes, chunk_rows):
                values = {field: _rows(column, start, stop) for field, column in columns.items()}
                for row, content in enumerate(self._contents(images, start, stop), start):
                    path = f"{self.shown(unit)}/{name}[{row}]"
                    fields = {field: column[row - start] for field, column in values.items()}
                    yield row_input(self.source, path, f"{prefix}-{row_number(row, count)}", content, fields)

    def _contents(self, images: h5py.Dataset, start: int, stop: int) -> Iterator[Content]:
        """The rows; of a slab with a damaged chunk those that can still be read."""
        try:
            slab = images[start:stop]
        except OSError:
            if stop - start == 1:
                yield Broken("truncated or damaged")
                return
            for row in range(start, stop):
                yield from self._contents(images, row, row + 1)
            return
        for image in slab:
            yield ArrayImage(image, self.source.alpha)

    def _images(self, file: Path, opened: h5py.File) -> h5py.Dataset:
        found = _datasets(opened)
        name = self.source.config.columns.image
        if name is not None:
            images = _named(file, found, name, "image")
            if not is_image_shape(images.shape) or images.dtype.kind not in "fiu":
                raise DataError(
                    f"{file}: {_describe(images)} (columns.image); expected numbers of shape (images, height, width, 3)"
                )
            return images
        fitting = [one for one in found.values() if is_image_shape(one.shape) and one.dtype in (np.uint8, np.uint16)]
        if len(fitting) != 1:
            several = "several data sets of images" if fitting else "no data set of uint8 images (N, height, width, 3)"
            listed = "; ".join(_describe(one) for one in fitting or found.values()) or "nothing"
            raise DataError(f"{file}: {several}: it holds {listed}; name one in columns.image")
        return fitting[0]

    def _columns(self, file: Path, opened: h5py.File, images: h5py.Dataset) -> dict[str, h5py.Dataset]:
        found, columns = _datasets(opened), {}
        for field, name in self.columns.items():
            column = columns[field] = _named(file, found, name, field)
            if column.shape[:1] != images.shape[:1] or column.size != len(images):
                raise DataError(
                    f"{file}: {_describe(column)} (columns.{field}); "
                    f"expected one value for each of the {len(images)} images"
                )
        return columns


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    try:
        opened = h5py.File(file, "r", locking="best-effort")
    except OSError as error:
        raise DataError(f"{file}: not an HDF5 file, truncated or unreadable: {error}") from None
    with opened:
        yield opened


def _datasets(opened: h5py.File) -> dict[str, h5py.Dataset]:
    """All data sets with rows, by name, in groups too."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            found[name] = item

    opened.visititems(visit)
    return found


def _named(file: Path, found: Mapping[str, h5py.Dataset], name: str, field: str) -> h5py.Dataset:
    wanted = name.strip("/")
    fitting = [wanted] if wanted in found else [other for other in found if fnmatchcase(other, wanted)]
    if len(fitting) != 1:
        what = f"{len(fitting)} data sets fit" if fitting else "no data set"
        listed = "; ".join(_describe(one) for one in found.values()) or "nothing"
        raise DataError(f"{file}: {what} '{name}' (columns.{field}); it holds {listed}")
    return found[fitting[0]]


def _describe(dataset: h5py.Dataset) -> str:
    return f"{dataset.name.lstrip('/')} {dataset.dtype} {tuple(dataset.shape)}"


def _rows(column: h5py.Dataset, start: int, stop: int) -> Any:
    try:
        return column[start:stop]
    except OSError as error:
        raise DataError(f"{column.file.filename}: {column.name} cannot be read: {error}") from None
