"""Small pictures of a painting: a preview while it is made, a thumbnail of the whole at the end."""

import io
from math import ceil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hdtrain.formats.atomic import write_bytes
from hdtrain.models.autoencoder import Codec, to_uint8
from hdtrain.sampling.painting.plan import PaintPlan
from hdtrain.sampling.painting.raw import RawPixels

LARGEST_PX = 1024


class Preview:
    """Takes ẑ_0 a row of cells at a time, shrinks it to a few windows, decodes these side by side.

    A canvas of up to 1024 pixels is shown as it is, windows side by side without blending; of a larger one the latents
    are averaged, which shows where what is, not how it looks.

    Args:
        plan: sizes.
        codec: decodes.
        path: of the PNG, replaced by rename.
    """

    def __init__(self, plan: PaintPlan, codec: Codec, path: Path):
        self.plan, self.codec, self.path = plan, codec, path
        most = max(1, LARGEST_PX // (plan.window * plan.factor)) * plan.window
        longest = max(plan.height, plan.width)
        fitting = [shrink for shrink in range(1, plan.window + 1) if not plan.window % shrink]
        self.shrink = next((shrink for shrink in fitting if longest / shrink <= most), plan.window)
        self._rows: list[Tensor] = []

    def add(self, _: int, z0: Float[Tensor, "c w columns"]) -> None:
        """The next row of cells."""
        self._rows.append(functional.avg_pool2d(z0[None], self.shrink)[0])

    @torch.no_grad()
    def write(self) -> None:
        """Publish what was added, and begin anew."""
        canvas, window, factor = torch.cat(self._rows, dim=1), self.plan.window, self.plan.factor
        self._rows = []
        _, height, width = canvas.shape
        rows, columns = ceil(height / window), ceil(width / window)
        padded = functional.pad(canvas, (0, columns * window - width, 0, rows * window - height))
        picture = np.zeros((rows * window * factor, columns * window * factor, 3), np.uint8)
        for row in range(rows):
            for column in range(columns):
                i, j = row * window, column * window
                cell = to_uint8(self.codec.decode(padded[None, :, i : i + window, j : j + window]))[0].cpu().numpy()
                picture[i * factor : (i + window) * factor, j * factor : (j + window) * factor] = cell
        write_picture(self.path, picture[: height * factor, : width * factor])


def write_picture(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """A PNG of at most 1024 pixels a side, by rename."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_PX, LARGEST_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def shrunk(pixels: RawPixels, largest_px: int = LARGEST_PX) -> UInt8[np.ndarray, "a b 3"]:
    """The image by means over squares, at most `largest_px` a side; a few rows are read at a time."""
    height, width, _ = pixels.shape
    side = ceil(max(height, width) / largest_px)
    rows = []
    for top in range(0, height, side):
        band = pixels[top : top + side].mean(axis=0, dtype=np.float32)
        edge = np.pad(band, ((0, -width % side), (0, 0)), mode="edge")
        rows.append(edge.reshape(-1, side, 3).mean(axis=1))
    return np.rint(np.stack(rows)).astype(np.uint8)
