"""The end of a file that may be large, half written, or gone. No torch."""

import os
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 16
_LARGEST = 1e300


def number(value: Any) -> float | None:
    """A finite number as a float; None for anything else, NaN too."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    return float(value) if right else None


def tail(path: Path) -> list[str]:
    """The last lines of a file, whole ones as far as it goes; none of a file that cannot be read."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > TAIL_BYTES else lines
