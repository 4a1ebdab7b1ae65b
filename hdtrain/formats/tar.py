"""Own ustar headers: plain tar members, mtime 0, no owner, so that the same input gives the same bytes."""

from typing import IO

BLOCK = 512
END = b"\0" * (2 * BLOCK)
MAX_NAME = 100


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
    head = (
        encoded.ljust(MAX_NAME, b"\0")
        + b"0000644\0"
        + b"0000000\0"
        + b"0000000\0"
        + b"%011o\0" % size
        + b"0" * 11
        + b"\0"
    )
    tail = b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 64 + b"0000000\0" + b"0000000\0" + b"\0" * 167
    checksum = sum(head) + 8 * 0x20 + sum(tail)
    return head + b"%06o\0 " % checksum + tail


class TarWriter:
    """Append members to a stream; `offset` is where the next header goes."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.offset = 0

    def add(self, name: str, data: bytes) -> int:
        """Write one member and return the offset of its data."""
        padding = -len(data) % BLOCK
        self.stream.write(member_header(name, len(data)) + data + b"\0" * padding)
        start = self.offset + BLOCK
        self.offset = start + len(data) + padding
        return start

    def close(self) -> None:
        """Write the end-of-archive blocks."""
        self.stream.write(END)
        self.offset += len(END)
