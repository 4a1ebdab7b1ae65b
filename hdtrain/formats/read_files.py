"""Read shards at an offset: few of them open at once, and patient with a disk that fails for a moment.

`pread` and no memory map. A page of a map that cannot be read kills the process with SIGBUS; a read that fails is an
`OSError`, which can be tried again and told. What that costs in speed: docs/reading.md.
"""

import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from hdtrain.errors import ShardError

T = TypeVar("T")
MAX_OPEN = 128
"""File descriptors kept open by all readers of a process together; the least recently used is closed."""
FIRST_PAUSE = 1 / 64
"""The first pause before another try, as a share of the whole patience; each further one is twice as long."""
PATIENCE_SEC = 60.0
"""How long a read that fails is tried again, where no config says otherwise."""


def patiently(action: Callable[[], T], what: str, retry_sec: float) -> T:
    """`action()`, tried again after every `OSError` with growing pauses, for `retry_sec` seconds from the first one.

    Args:
        action: what may fail.
        what: what messages call it, a path first.
        retry_sec: 0 tries once.

    Raises:
        ShardError: it failed all the time.
    """
    deadline, pause = None, retry_sec * FIRST_PAUSE
    while True:
        try:
            return action()
        except OSError as error:
            now, problem = time.monotonic(), f"{what}: {error.strerror or error}"
        if deadline is None:
            deadline = now + retry_sec
            if retry_sec > 0:
                print(f"warning: {problem}; trying again for {retry_sec:g} s", file=sys.stderr)
        if now >= deadline:
            tried = f"tried for {retry_sec:g} s; " if retry_sec > 0 else ""
            raise ShardError(f"{problem}; {tried}when the file, its disk or its server is back, run the same command")
        time.sleep(min(pause, deadline - now))
        pause *= 2


class _Descriptor:
    """An open file; closed when nobody holds it any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_recent: "OrderedDict[int, weakref.ref[ReadFile]]" = OrderedDict()
_recent_lock = threading.Lock()


def _use(file: "ReadFile") -> None:
    """Count `file` as the one used last, and close those whose use is longest ago, as far as there are too many."""
    with _recent_lock:
        _recent[id(file)] = weakref.ref(file)
        _recent.move_to_end(id(file))
        surplus = [_recent.popitem(last=False)[1]() for _ in range(len(_recent) - MAX_OPEN)]
    for oldest in surplus:
        if oldest is not None:
            oldest.close()


class ReadFile:
    """One shard, read at offsets by any number of threads. Opened at the first read.

    Args:
        path: the tar.
        size: the bytes that its sidecar says.
        retry_sec: for how long a read that fails is tried again.
    """

    def __init__(self, path: Path, size: int, retry_sec: float = 0.0):
        self.path, self.size, self.retry_sec = path, size, retry_sec
        self._descriptor: _Descriptor | None = None

    def read(self, size: int, offset: int, what: str) -> bytes:
        """`size` bytes from `offset`; `what` names them in errors.

        Raises:
            ShardError: the shard is missing, unreadable, not of its size, or ends before.
        """
        try:
            return self._read(size, offset, what)
        except OSError:
            return self._again(lambda: self._read(size, offset, what), offset, what)

    def read_into(self, array: np.ndarray, offset: int, what: str) -> None:
        """Fill a contiguous array with the bytes from `offset`.

        Raises:
            ShardError: as `read`.
        """
        try:
            self._fill(array, offset, what)
        except OSError:
            self._again(lambda: self._fill(array, offset, what), offset, what)

    def read_rows(self, out: np.ndarray, rows: Sequence[int], offsets: Sequence[int], what: str) -> None:
        """Fill the rows `rows` of `out` with the bytes from their offsets: `read_into` with less to do for each.

        Raises:
            ShardError: as `read`.
        """
        size, preadv = out[0].nbytes, os.preadv
        try:
            descriptor = self._opened()
            whole = all(
                preadv(descriptor.number, [out[row]], offset) == size for row, offset in zip(rows, offsets, strict=True)
            )
        except OSError:
            whole = False
        if not whole:  # once more, carefully
            for row, offset in zip(rows, offsets, strict=True):
                self.read_into(out[row], offset, what)

    def close(self) -> None:
        """Let go of the file; reads in progress end well, a later one opens it again."""
        self._descriptor = None

    def _again(self, action: Callable[[], T], offset: int, what: str) -> T:
        def reopened() -> T:
            self.close()  # a stale handle stays stale
            return action()

        return patiently(reopened, f"{self.path}: {what} at byte {offset} cannot be read", self.retry_sec)

    def _read(self, size: int, offset: int, what: str) -> bytes:
        descriptor = self._opened()
        data = os.pread(descriptor.number, size, offset)
        while len(data) < size:
            more = os.pread(descriptor.number, size - len(data), offset + len(data))
            if not more:
                raise self._ends_early(offset + len(data), what)
            data += more
        return data

    def _fill(self, array: np.ndarray, offset: int, what: str) -> None:
        descriptor, missing = self._opened(), array.data.cast("B")
        while missing:
            done = os.preadv(descriptor.number, [missing], offset)
            if not done:
                raise self._ends_early(offset, what)
            missing, offset = missing[done:], offset + done

    def _opened(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            try:
                descriptor = _Descriptor(self.path)
            except FileNotFoundError as error:
                raise FileNotFoundError(error.errno, "shard is missing") from None
            found = os.fstat(descriptor.number).st_size
            if found != self.size:
                raise ShardError(
                    f"{self.path}: {found} bytes, its sidecar says {self.size}: truncated or of another one; "
                    "restore it, or move the data set away and make it again; `hdtrain verify` tells what else is wrong"
                )
            self._descriptor = descriptor
        _use(self)
        return descriptor

    def _ends_early(self, end: int, what: str) -> ShardError:
        return ShardError(f"{self.path}: ends at byte {end}, in the middle of {what}: truncated while it was read")
