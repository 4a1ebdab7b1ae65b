"""`pannuke`: images as rows of `.npy` arrays, as in `Fold 1/images/fold1/{images,types}.npy` of PanNuke.

`images.npy` is (N, h, w, 1, 3 or 4); PanNuke's is (N, 256, 256, 3) float64 holding 0..255. A column `types` is the
array `types.npy` beside it, of one value an image. The arrays are mapped, so that only the rows in use are in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hdtrain.errors import DataError
from sharding.inputs import Input
from sharding.readers.arrays import ArrayImage, is_image_shape, slabs
from sharding.readers.base import Unit, file_state, ranges
from sharding.readers.records import RecordReader, row_input, row_number, stem_prefix


class NpyReader(RecordReader):
    """A `.npy` file, or a folder with files `images.npy` (or as `columns.image` says) at any depth."""

    suffixes = frozenset({".npy"})
    kind = "images.npy"

    def is_wanted(self, name: str) -> bool:
        """Only the arrays of images; `masks.npy` and the like are passed over."""
        return name.rpartition("/")[2] == f"{self.source.config.columns.image or 'images'}.npy"

    def file_units(self, path: str, file: Path) -> Iterator[Unit]:
        """Raises DataError for an array of another shape, or columns that do not fit it."""
        yield from ranges(path, len(self._open(file)), self.unit_inputs)

    def state(self, unit: Unit) -> Any:
        """Sizes and times of change of the images and of the columns."""
        file = self.file(unit)
        return [file_state(path) for path in (file, *self._columns(file).values())]

    def read(self, unit: Unit) -> Iterator[Input]:
        """Slab by slab; each is unmapped again, so that the pages that were read do not add up."""
        file, prefix = self.file(unit), stem_prefix(unit)
        images = self._open(file)
        count, row_bytes = len(images), images[:1].nbytes
        columns = {field: _load(path) for field, path in self._columns(file).items()}
        del images
        for start, stop in slabs(unit.start, min(unit.stop or count, count), row_bytes):
            slab = np.array(_load(file)[start:stop])
            for row, image in enumerate(slab, start):
                number = row_number(row, count)
                stem = f"{prefix}-{number}" if prefix else number
                values = {field: column[row] for field, column in columns.items()}
                content = ArrayImage(image, self.source.alpha)
                yield row_input(self.source, f"{self.shown(unit)}[{row}]", stem, content, values)

    def _open(self, file: Path) -> NDArray[Any]:
        images = _load(file)
        if not is_image_shape(images.shape) or images.dtype.kind not in "fiu":
            raise DataError(
                f"{file}: {images.dtype} of shape {images.shape}; expected numbers of shape (images, height, width, 3)"
            )
        for field, path in self._columns(file).items():
            column = _load(path)
            if column.shape[:1] != images.shape[:1] or column.size != len(images):
                raise DataError(
                    f"{path}: shape {column.shape} as the {field}; expected one value for each of the "
                    f"{len(images)} images of {file.name}"
                )
        return images

    def _columns(self, file: Path) -> dict[str, Path]:
        return {field: file.with_name(f"{name}.npy") for field, name in self.columns.items()}


def _load(path: Path) -> NDArray[Any]:
    """The array, mapped; a damaged, truncated or pickled one is a DataError."""
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, but 'columns' names it") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array that can be mapped, or truncated: {error}") from None
    return array
