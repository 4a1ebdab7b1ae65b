"""Pixels on disk, read and written a few rows at a time. No torch.

Not a memory map: its pages would count as the process's memory until the kernel wants them back.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class RawPixels:
    """uint8 HWC RGB, nothing else in the file."""

    path: Path
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Values, and bytes."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_there(self) -> bool:
        """Whether the file has its size."""
        return self.path.is_file() and self.path.stat().st_size == self.size

    def make(self) -> None:
        """A file of zeros, if it is not there; takes no room on the disk yet."""
        if not self.is_there:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("wb") as stream:
                stream.truncate(self.size)

    def write(self, top: int, rows: UInt8[np.ndarray, "n w 3"]) -> None:
        """Put rows in their place."""
        with self.path.open("r+b") as stream:
            stream.seek(top * self._row_bytes)
            stream.write(np.ascontiguousarray(rows).tobytes())

    def __getitem__(self, rows: slice) -> UInt8[np.ndarray, "n w 3"]:
        """Rows `start` … `stop` − 1."""
        start, stop, _ = rows.indices(self.shape[0])
        count = (stop - start) * self._row_bytes
        return np.fromfile(self.path, np.uint8, count, offset=start * self._row_bytes).reshape(-1, *self.shape[1:])

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.shape[2]
