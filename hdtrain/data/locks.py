"""flock on files that other processes may rename or remove meanwhile. A lock ends with its process, however it ends."""

import contextlib
import fcntl
import os
from pathlib import Path


def try_lock(file: int) -> bool:
    """An exclusive lock on an open file, if nobody else has one of any kind."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_whole(path: Path) -> int | None:
    """`path`, opened and locked against removal, and marked as used now; None where it is not there (any more)."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits only while it is being removed
    if not is_at(file, path):
        os.close(file)
        return None
    with contextlib.suppress(PermissionError):  # another user's
        os.utime(file)
    return file


def remove_unlocked(path: Path, *with_it: Path) -> bool:
    """Remove a file that nobody has locked, and the files that belong to it; tell whether that was possible."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(file) or not is_at(file, path):
            return False
        for belonging in with_it:
            belonging.unlink(missing_ok=True)
        path.unlink()
        return True
    finally:
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether `path` still is the file that is open."""
    stat = stat_of(path)
    return stat is not None and os.path.samestat(os.fstat(file), stat)


def stat_of(path: Path) -> os.stat_result | None:
    """Its stat; None where it is not there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
