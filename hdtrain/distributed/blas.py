"""How many threads numpy's OpenBLAS uses: with another number it sums in another order, and last bits differ."""

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def set_blas_threads(count: int) -> int:
    """Set it in every OpenBLAS that this process has loaded; how many those are (0 off Linux, or with another BLAS)."""
    if not _MAPS.exists():
        return 0
    paths = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "openblas" in line}
    found = 0
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        setter = next((getattr(library, name) for name in _SETTERS if hasattr(library, name)), None)
        if setter is not None:
            setter(ctypes.c_int(count))
            found += 1
    return found
