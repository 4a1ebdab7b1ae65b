"""The stop flag: a signal sets it, every rank learns of it at the next step, all save, and the run can go on later."""

import signal
from types import FrameType

STOPPED_EXIT_CODE = 3
"""A stage that saved because of a signal leaves with this; the same command continues."""


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT, for the rest of the process. A second SIGINT stops at once."""

    is_set = False

    def install(self) -> None:
        """Take over the signals; a flag that is set already stays set."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True


STOP = StopFlag()
"""The process's one flag: a signal between two seeds' trainings must not be lost."""
