"""A contact sheet of what is being sampled: one row a class, from the images of one shard."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hdtrain.formats.atomic import write_bytes

COLUMNS, MAX_ROWS, TILE_PX = 10, 24, 96


class ContactSheet:
    """Takes the first images of each class; `write` puts them side by side.

    Args:
        path: of the JPEG.
        writer: tells processes apart that write it.
    """

    def __init__(self, path: Path, writer: str):
        self.path, self._writer, self._rows = path, writer, dict[int, list[Image.Image]]()

    def add(self, label: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """One image of class `label`; what has no room is passed over."""
        row = self._rows.setdefault(label, [])
        if len(row) < COLUMNS and len(self._rows) <= MAX_ROWS:
            row.append(Image.fromarray(image).resize((TILE_PX, TILE_PX)))

    def write(self, classes: Sequence[str] | None) -> None:
        """Publish it and begin anew."""
        labels = sorted(self._rows)[:MAX_ROWS]
        sheet = Image.new("RGB", (COLUMNS * TILE_PX, max(1, len(labels)) * TILE_PX), "white")
        for number, label in enumerate(labels):
            for column, image in enumerate(self._rows[label]):
                sheet.paste(image, (column * TILE_PX, number * TILE_PX))
        buffer = io.BytesIO()
        shown = ", ".join(classes[label] for label in labels) if classes else "all images"
        sheet.save(buffer, "JPEG", quality=90, comment=f"rows: {shown}".encode())
        write_bytes(self.path, buffer.getvalue(), self._writer)
        self._rows = {}
