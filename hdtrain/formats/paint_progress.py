"""`RUN/work/progress.json`: how far a painting is, told by rank 0 every few seconds, read by `hdtrain status`.

Replaced by rename, without fsync: nothing depends on it.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hdtrain.config.base import Config

_NAME = "progress.json"


class PaintProgress(Config):
    """First the canvas is solved, then it is decoded; `written` is unix seconds of the writer's clock."""

    phase: Literal["paint", "decode"]
    done: int = Field(ge=0)
    """Windows of this phase: over all steps, or decoded ones."""
    steps: int = Field(ge=1)
    windows: int = Field(ge=1)
    """Of a step, and to decode."""
    windows_per_sec: float = Field(0.0, ge=0)
    """Since this attempt began the phase."""
    saved_steps: int = Field(0, ge=0)
    """After a kill the canvas goes on from here."""
    written: float

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.steps if self.phase == "decode" else min(self.steps, self.done // self.windows)

    @property
    def total(self) -> int:
        """Windows of this phase."""
        return self.windows * (self.steps if self.phase == "paint" else 1)


def write_paint_progress(folder: Path, progress: PaintProgress) -> None:
    """Replace the file in `RUN/work`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_NAME}.tmp"
    temporary.write_text(progress.model_dump_json())
    temporary.replace(folder / _NAME)


def read_paint_progress(folder: Path) -> PaintProgress | None:
    """What was told last; None: nothing, or it cannot be read."""
    try:
        return PaintProgress.model_validate_json((folder / _NAME).read_bytes())
    except (OSError, ValidationError):
        return None
