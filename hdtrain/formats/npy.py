"""`.npy` files, written so that a full disk is noticed."""

from pathlib import Path

import numpy as np

from hdtrain.formats.atomic import atomic_file


def write_npy(path: Path, array: np.ndarray, writer: str = "") -> None:
    """Write a `.npy` file atomically. `np.save` says nothing when the disk is full."""
    try:
        with atomic_file(path, writer) as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
            stream.write(np.ascontiguousarray(array).data)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
