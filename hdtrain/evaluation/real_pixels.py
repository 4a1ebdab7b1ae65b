"""The middle of a real image or slide, as large as a painting: checked when it is opened, read a few rows at a time."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hdtrain.errors import DataError


@dataclass(frozen=True)
class RealPixels:
    """Rows of an image, or of a slide at its finest level; a slide is read as it is asked for, an image at once."""

    path: Path
    left: int
    top: int
    shape: tuple[int, int, int]
    slide: Any = None
    """An open OpenSlide; None: an image."""

    def __getitem__(self, rows: slice) -> UInt8[np.ndarray, "n w 3"]:
        """Rows `start` … `stop` − 1."""
        start, stop, _ = rows.indices(self.shape[0])
        if self.slide is None:
            return self._image[start:stop]
        region = self.slide.read_region((self.left, self.top + start), 0, (self.shape[1], stop - start))
        return np.asarray(region.convert("RGB"))

    @cached_property
    def _image(self) -> UInt8[np.ndarray, "h w 3"]:
        height, width, _ = self.shape
        with Image.open(self.path) as image:
            box = (self.left, self.top, self.left + width, self.top + height)
            return np.asarray(image.crop(box).convert("RGB"))


def open_real(path: Path, height: int, width: int) -> RealPixels:
    """The middle of an image or slide.

    Raises:
        DataError: unreadable, or smaller than that.
    """
    slide = _open_slide(path)
    if slide is not None:
        columns, rows = slide.dimensions
    else:
        try:
            with Image.open(path) as image:
                columns, rows = image.size
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path}: cannot be read as an image or a slide: {error}; slides need OpenSlide: "
                "pip install 'hdtrain[slides]'"
            ) from None
    if columns < width or rows < height:
        raise DataError(
            f"{path} has {columns} × {rows} pixels, the painting {width} × {height}; name an image that is as large"
        )
    return RealPixels(path, (columns - width) // 2, (rows - height) // 2, (height, width, 3), slide)


def _open_slide(path: Path) -> Any:
    """The slide, if it is one and OpenSlide is there."""
    try:
        import openslide
    except ImportError:
        return None
    try:
        return openslide.OpenSlide(path)
    except (OSError, openslide.OpenSlideError):
        return None
