"""Own ustar headers: plain tar members, mtime 0, no owner, so that the same input gives the same bytes.

A header is put together from constant pieces; only the name and the size's digits are new, and only they are summed for
its checksum. Members are gathered and written a chunk at a time. Both together make a sample cost little more than
copying its bytes (`docs/benchmarks/shards.md`).
"""

import zlib
from typing import Protocol

BLOCK = 512
END = b"\0" * (2 * BLOCK)
MAX_NAME = 100
CHUNK_BYTES = 1 << 20
"""Written at once. Large enough that a write's fixed cost vanishes, small enough to stay in the processor's cache."""

_ZEROS = bytes(BLOCK)
_NAME_PADDING = tuple(bytes(MAX_NAME - length) for length in range(MAX_NAME + 1))
_MODE_OWNER = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"\0" + b"0" * 11 + b"\0"
_REST = b"\0 " + b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 64 + b"0000000\0" + b"0000000\0" + b"\0" * 167
_CONSTANT_SUM = sum(_MODE_OWNER + _MTIME + _REST[2:]) + 8 * ord(" ")  # the checksum's own 8 bytes count as blanks


def member_header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a regular file (POSIX.1-1988, mode 0644, uid and gid 0, mtime 0).

    Raises:
        ValueError: the name is longer than ustar's 100 bytes, or the size does not fit 11 octal digits (8 GiB).
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME:
        raise ValueError(f"member name of {len(encoded)} bytes, ustar holds 1 to {MAX_NAME}: {name}")
    if size >= 8**11:
        raise ValueError(f"member {name} of {size} bytes, ustar holds less than {8**11}")
    digits = b"%011o" % size
    # The low half of adler32 is 1 plus the sum of the bytes, modulo 65521: exact here, where the sum is below 30,000.
    checksum = _CONSTANT_SUM + (zlib.adler32(digits, zlib.adler32(encoded)) & 0xFFFF) - 1
    return b"".join((encoded, _NAME_PADDING[len(encoded)], _MODE_OWNER, digits, _MTIME, b"%06o" % checksum, _REST))


class Sink(Protocol):
    """What an archive is written to: a buffered file, or anything whose `write` takes all that it is given."""

    def write(self, data: bytes, /) -> object:
        """Take `data`."""


class TarWriter:
    """Append members to a stream, about `CHUNK_BYTES` at a time; `offset` is where the next header goes."""

    def __init__(self, stream: Sink):
        self.stream = stream
        self.offset = 0
        self._waiting: list[bytes] = []
        self._written = 0

    def add(self, name: str, data: bytes | bytearray | memoryview) -> int:
        """Append one member and return the offset of its data.

        Raises:
            ValueError: see `member_header`.
        """
        content = data if isinstance(data, bytes) else bytes(data)  # what waits must not change
        size = len(content)
        waiting = self._waiting
        waiting.append(member_header(name, size))
        start = self.offset + BLOCK
        if size < CHUNK_BYTES:
            waiting.append(content)
        else:  # written as it is, not copied into a chunk
            self._write_waiting()
            self._write(content)
        waiting.append(_ZEROS[: -size % BLOCK])
        self.offset = start + size + -size % BLOCK
        if self.offset - self._written >= CHUNK_BYTES:
            self._write_waiting()
        return start

    def close(self) -> None:
        """Write what waits and the end-of-archive blocks. The stream stays open."""
        self._waiting.append(END)
        self.offset += len(END)
        self._write_waiting()

    def _write_waiting(self) -> None:
        self._write(b"".join(self._waiting))
        self._waiting.clear()

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self._written += len(data)
