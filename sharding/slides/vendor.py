"""Slides of scanner makers, read by OpenSlide: `.ndpi`, `.mrxs`, `.scn` …, and every TIFF that it knows.

The package is the extra `slides`: `pip install 'hdtrain[slides]'`.
"""

import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sharding.images import Pixels, UnusableError
from sharding.slides.base import Level, Slide, level_downsample, plausible_mpp

INSTALL = "pip install 'hdtrain[slides]'"
_CACHE_BYTES = 256 * 2**20
_MAX_DRIFT_PX = 0.02


def openslide_module() -> ModuleType | None:
    """The package `openslide`; None if it or its library is not installed."""
    try:
        import openslide
    except (ImportError, OSError):
        return None
    return openslide


@cache
def _shared_cache() -> Any:
    """Decoded segments of all slides of this process."""
    module = openslide_module()
    return module.OpenSlideCache(_CACHE_BYTES) if module else None


class VendorSlide(Slide):
    """A slide through OpenSlide."""

    def __init__(self, path: Path):
        """Open the slide; raises UnusableError if OpenSlide is missing or does not read the file."""
        module = openslide_module()
        if module is None:
            raise UnusableError(f"needs OpenSlide: {INSTALL}")
        self._module, self._path, self._lock = module, path, threading.Lock()
        self._slide = slide = self._open()
        self.mpp = _mpp(slide.properties)
        self._steps: tuple[float, ...] = slide.level_downsamples
        self.levels = [
            _level(slide.dimensions, size, step) for size, step in zip(slide.level_dimensions, self._steps, strict=True)
        ]

    def _open(self) -> Any:
        try:
            with self._path.open("rb"):
                slide = self._module.OpenSlide(self._path)
            slide.set_cache(_shared_cache())
        except OSError as error:
            raise UnusableError(f"unreadable: {error.strerror or error}") from None
        except self._module.OpenSlideUnsupportedFormatError:
            raise UnusableError("not a slide that OpenSlide can open") from None
        except self._module.OpenSlideError as error:
            raise UnusableError("truncated or damaged") from error
        return slide

    def read(self, left: int, top: int, width: int, height: int, level: int = 0) -> Pixels:
        """The region, over white where the scanner left it out."""
        step = self._steps[level]
        place = (round(left * step), round(top * step)), level, (width, height)
        slide = self._slide
        try:
            image = slide.read_region(*place)
        except self._module.OpenSlideError:
            image = self._read_again(slide, place)
        rgba = np.asarray(image)
        opacity = rgba[..., 3:]
        if opacity.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        opacity = opacity.astype(np.uint32)
        return ((opacity * rgba[..., :3] + (255 - opacity) * 255 + 127) // 255).astype(np.uint8)

    def _read_again(self, failed: Any, place: tuple[Any, ...]) -> Any:
        """With a handle of its own: one error makes a handle fail for good, also for other threads' sound regions."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()
        fresh = self._open()
        try:
            return fresh.read_region(*place)
        except self._module.OpenSlideError as error:
            raise UnusableError("truncated or damaged") from error
        finally:
            fresh.close()


def _level(finest: tuple[int, int], size: tuple[int, int], step: float) -> Level:
    """OpenSlide takes positions in whole pixels of the finest level: it must interpolate where `step` is no integer."""
    drift_px = abs(step - round(step)) / step * max(size)
    return Level(size[0], size[1], level_downsample(finest, size) or step, exact=drift_px <= _MAX_DRIFT_PX)


def _mpp(properties: Any) -> tuple[float, float] | None:
    try:
        return plausible_mpp(float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
    except (KeyError, ValueError):
        return None
