"""Images that lie as rows of one array, in HDF5 and `.npy` files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.images import Alpha, Pixels, UnusableError, from_array

_SLAB_ROWS = 64
_SLAB_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImage:
    """One image as an array (h, w, 1, 3 or 4), brought to uint8 RGB when it is loaded.

    uint8 and uint16 follow the rules of image files (gray, alpha, 16 bits). All other types must hold whole numbers in
    0..255, as PanNuke's float64 do; nothing is scaled, since 0..1 cannot be told from a dark image.
    """

    image: NDArray[Any]
    alpha: Alpha = "white"

    def load(self) -> Pixels:
        """uint8 RGB (h, w, 3); raises UnusableError."""
        image = self.image
        return from_array(image if image.dtype in (np.uint8, np.uint16) else _whole_numbers(image), self.alpha)


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether it is (images, height, width, 1, 3 or 4 channels)."""
    return len(shape) == 4 and shape[3] in (1, 3, 4)


def _whole_numbers(image: NDArray[Any]) -> Pixels:
    if image.dtype.kind not in "fiu":
        raise UnusableError(f"unsupported mode: {image.dtype}")
    with np.errstate(invalid="ignore"):
        pixels = image.astype(np.uint8)  # what does not fit becomes some other number, which the comparison finds
    if not np.array_equal(pixels, image):
        raise UnusableError(f"not whole numbers in 0..255: {image.min():g} to {image.max():g}")
    return pixels


def slabs(start: int, stop: int, row_bytes: int, chunk_rows: int = 1) -> Iterator[tuple[int, int]]:
    """Stretches of rows to read at once: 64, fewer of large images, but whole chunks of the file."""
    rows = max(1, min(_SLAB_ROWS, _SLAB_BYTES // max(row_bytes, 1)))
    rows = -(-rows // chunk_rows) * chunk_rows
    while start < stop:
        end = min(stop, start - start % rows + rows)
        yield start, end
        start = end
