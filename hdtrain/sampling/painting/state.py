"""What a painting needs to go on after a kill, in `RUN/work`: the canvas after a step, and pixels band by band."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hdtrain.formats.atomic import atomic_file, write_json
from hdtrain.sampling.painting.raw import RawPixels


@dataclass(frozen=True)
class PaintState:
    """The files. Rank 0 writes; all read before they first talk to each other."""

    folder: Path
    pixels: tuple[int, int]
    """Height and width of the image."""

    def save_canvas(self, step: int, canvas: Float[np.ndarray, "c h w"]) -> None:
        """The canvas before step `step`."""
        with atomic_file(self.folder / "canvas.npz") as stream:
            np.savez(stream, step=np.int64(step), canvas=canvas)

    def canvas(self) -> tuple[int, Float[np.ndarray, "c h w"]] | None:
        """The step to go on with, and the canvas before it; None: none was saved."""
        try:
            with np.load(self.folder / "canvas.npz", allow_pickle=False) as found:
                return int(found["step"]), found["canvas"]
        except FileNotFoundError:
            return None

    @property
    def raw(self) -> RawPixels:
        """The image."""
        return RawPixels(self.folder / "pixels.raw", (*self.pixels, 3))

    def save_bands(self, bands: int) -> None:
        """So many bands of the image are on the disk."""
        write_json(self.folder / "bands.json", {"bands": bands})

    def bands(self) -> int:
        """How many are."""
        try:
            found: int = json.loads((self.folder / "bands.json").read_bytes())["bands"]
        except FileNotFoundError:
            return 0
        return found if self.raw.is_there else 0
