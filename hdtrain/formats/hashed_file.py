"""sha256 of a large file by a thread that reads after its writer."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO


class HashedFile:
    """Writes to `stream`, a named file, while one thread hashes it, `PIECE_BYTES` at a time.

    The thread takes what was just written from the system's cache, in large pieces. So nothing but one buffer is held
    for it, and the two seldom wait for each other, also where all cores are busy: hashing each chunk as it passes would
    hand Python's lock over ten times as often.
    """

    PIECE_BYTES = 8 << 20
    stream: IO[bytes]

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sha256")  # starts its thread at the first piece
        self._pieces: list[Future[None]] = []
        self._buffer = memoryview(b"")
        self._source: int | None = None
        self._written = self._given = self._hashed = 0

    def write(self, data: bytes) -> None:
        """Append to the stream."""
        self.stream.write(data)
        self._written += len(data)
        if self._written - self._given >= self.PIECE_BYTES:
            self.hash_written()

    def hash_written(self) -> None:
        """Give the thread what it has not had yet. The last call must come before the file is renamed."""
        self.stream.flush()
        if self._source is None:
            self._source = os.open(self.stream.name, os.O_RDONLY)
        self._pieces.append(self._thread.submit(self._hash_until, self._source, self._written))
        self._given = self._written

    def _hash_until(self, source: int, end: int) -> None:
        size = min(end - self._hashed, self.PIECE_BYTES)
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        while self._hashed < end:
            got = os.preadv(source, [self._buffer[: end - self._hashed]], self._hashed)
            if not got:
                raise OSError(
                    f"{self.stream.name}: {self._hashed} bytes, although {end} were written; is its disk well?"
                )
            self._digest.update(self._buffer[:got])
            self._hashed += got

    def hexdigest(self) -> str:
        """Of all that was given.

        Raises:
            OSError: what was written cannot be read back.
        """
        for piece in self._pieces:
            piece.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread; pieces that it has not begun are dropped. The stream stays as it is."""
        self._thread.shutdown(cancel_futures=True)
        if self._source is not None:
            os.close(self._source)
            self._source = None
