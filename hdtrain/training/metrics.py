"""TensorBoard and `metrics.jsonl`, written by one call."""

import json
import time
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from hdtrain.formats.atomic import write_bytes


class MetricWriter:
    """Scalars and images of one training run.

    Args:
        jsonl: the rows.
        tensorboard: folder of event files.
        resume_step: what a killed run wrote after this step, its last checkpoint, is dropped.
        enabled: False writes nothing (ranks other than 0).
    """

    def __init__(self, jsonl: Path, tensorboard: Path, resume_step: int, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        if jsonl.exists():
            kept = [line for line in jsonl.read_bytes().splitlines(keepends=True) if _step_of(line) <= resume_step]
            write_bytes(jsonl, b"".join(kept))
        jsonl.parent.mkdir(parents=True, exist_ok=True)
        self._lines = jsonl.open("ab")
        self._board = SummaryWriter(str(tensorboard), purge_step=resume_step + 1 if resume_step else None)

    def scalars(self, step: int, images: int, values: dict[str, float]) -> None:
        """One row for both; TensorBoard's x axis is steps."""
        if not self._enabled:
            return
        row = {"step": step, "images": images, "time": time.time(), **values}
        self._lines.write(json.dumps(row).encode() + b"\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def images(self, step: int, grids: dict[str, np.ndarray]) -> None:
        """uint8 HWC grids."""
        if not self._enabled:
            return
        for name, grid in grids.items():
            self._board.add_image(name, grid, step, dataformats="HWC")
        self._board.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._lines.close()
            self._board.close()


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line that a kill cut short
        return 2**62


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 NHWC images as one HWC grid with a white gap of 2 px, row by row."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 2), (i % columns) * (width + 2)
        grid[top : top + height, left : left + width] = image
    return grid
