"""Processes that do not outlive the one that started them. No torch here."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when the thread that started it ends; `parent` is the pid that should be alive.

    Nothing is lost by the kill: everything a stage publishes is renamed into place when complete.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:  # it died before the call
            os._exit(1)
