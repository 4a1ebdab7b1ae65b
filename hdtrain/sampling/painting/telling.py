"""Rank 0 tells `hdtrain status` how far a painting is."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hdtrain.formats.paint_progress import PaintProgress, write_paint_progress
from hdtrain.progress import Progress

EVERY_SEC = 5.0


@dataclass
class Telling:
    """Writes `RUN/work/progress.json`, at most every five seconds.

    Args:
        folder: `RUN/work`.
        steps: of the canvas.
        windows: of a step.
        enabled: false on ranks other than 0.
    """

    folder: Path
    steps: int
    windows: int
    enabled: bool
    saved_steps: int = 0
    """Of the canvas that lies on the disk."""
    _last: float = -math.inf

    def tell(self, phase: Literal["paint", "decode"], progress: Progress, now: bool = False) -> None:
        """How far `phase` is; `now`: even if something was told a moment ago."""
        if not self.enabled or (time.monotonic() - self._last < EVERY_SEC and not now):
            return
        self._last = time.monotonic()
        told = PaintProgress(
            phase=phase,
            done=progress.done,
            steps=self.steps,
            windows=self.windows,
            windows_per_sec=progress.rate,
            saved_steps=self.saved_steps,
            written=time.time(),
        )
        write_paint_progress(self.folder, told)
