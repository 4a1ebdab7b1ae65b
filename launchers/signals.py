"""The queue's signals inside a job: held back from a task's first moment, then heard, remembered and passed on.

A mask of held signals is inherited by what a process starts. So nothing is lost, and nothing killed, by a signal that
comes while Python imports: it waits until the task has handlers.
"""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def hold() -> None:
    """From now on they wait, in this process and in what it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """For what is started here and now."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """Hears them while it is entered, also those that waited; passes them on to the child."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Signals":
        for number in FORWARDED:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return self

    def __exit__(self, *_: object) -> None:
        for number in FORWARDED:  # what comes now, comes to a process that has only to end
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if self._child:
            self._child.send_signal(number)

    def wait(self, child: "subprocess.Popen[bytes]") -> int:
        """The child's exit code; one that came before the child was there is passed on now."""
        self._child = child
        if self.received:
            child.send_signal(self.received[0])
        code = child.wait()
        self._child = None
        return code
