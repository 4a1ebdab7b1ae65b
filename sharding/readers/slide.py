"""`slide`: tiles of whole-slide images, one unit a slide; see `docs/slides.md`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.errors import DataError
from sharding.images import UnusableError
from sharding.inputs import Broken, Input
from sharding.readers.base import Reader, Unit, as_text, file_state
from sharding.slides import open_slide
from sharding.slides.files import SLIDE_SUFFIXES, VENDOR_SUFFIXES, parts_of, slide_files
from sharding.slides.tissue import TissueMask
from sharding.slides.vendor import INSTALL, openslide_module
from sharding.slides.view import View
from sharding.tiles import Tile

__all__ = ["SLIDE_SUFFIXES", "SlideReader"]

_TCGA_PATIENT = re.compile(r"TCGA-\w\w-\w{4}(?!\w)")
_SLIDES_TO_MEASURE = 8

NOT_A_SLIDE = "not a slide"


class SlideReader(Reader):
    """One slide file, or a folder with slides at any depth."""

    def units(self) -> Iterator[Unit]:
        """A unit a slide, in the order of names; other images are units too, to be refused.

        `num_inputs` is estimated from the file's size by the first slide that opens.

        Raises:
            DataError: there is no slide, or OpenSlide is needed and not installed.
        """
        root = self.source.path
        files = [root] if root.is_file() else list(slide_files(root))
        slides = [file for file in files if file.suffix.lower() in SLIDE_SUFFIXES]
        if not slides:
            raise DataError(f"{root}: no slides; expected files ending in {', '.join(sorted(SLIDE_SUFFIXES))}")
        self._check_openslide(slides)
        density = self._tiles_per_byte(slides)
        for file in files:
            path = "" if file == root else file.relative_to(root).as_posix()
            is_slide = file.suffix.lower() in SLIDE_SUFFIXES
            yield Unit(path, num_inputs=max(1, round(density * _num_bytes(file))) if is_slide else 1)

    def state(self, unit: Unit) -> Any:
        """Size and time of change of the slide and of every file that belongs to it."""
        file = self._file(unit)
        return [file_state(file), *([part.name, file_state(part)] for part in parts_of(file))]

    def read(self, unit: Unit) -> Iterator[Input]:
        """Every tile that lies wholly inside the slide, row by row; a single broken input for a slide without any."""
        file = self._file(unit)
        try:
            view = self._view(file)
        except UnusableError as error:
            path = self._path(unit)
            yield Input(path, _stem(path), Broken(str(error)), **self._fields(path))
            return
        yield from self._tiles(self._path(unit), view)

    def _file(self, unit: Unit) -> Path:
        return self.source.path / unit.path if unit.path else self.source.path

    def _path(self, unit: Unit) -> str:
        return as_text(unit.path or self.source.path.name)

    def _fields(self, path: str) -> dict[str, Any]:
        stem = _stem(path).rpartition("/")[2]
        patient = _TCGA_PATIENT.match(stem)
        known = {"slide": stem, "patient": patient[0] if patient else None, "mpp": self.source.config.mpp}
        return known | self.source.fields(path)

    def _view(self, file: Path) -> View:
        config = self.source.config
        if file.suffix.lower() not in SLIDE_SUFFIXES:
            raise UnusableError(f"{NOT_A_SLIDE}: {file.suffix.lower()} file")
        view = View.of(open_slide(file, config.slide_reader), config.target_mpp, config.mpp)
        if min(view.width, view.height) < config.tile_px:
            raise UnusableError(f"smaller than a tile of {config.tile_px} px")
        return view

    def _tiles(self, path: str, view: View) -> Iterator[Input]:
        size_px, stride_px = self.source.config.tile_px, self.source.config.stride_px or self.source.config.tile_px
        step_x, step_y = view.step
        fields, stem = self._fields(path) | {"mpp": view.mpp}, _stem(path)
        origin = fields.pop("x", 0), fields.pop("y", 0)
        min_tissue = self.source.config.min_tissue
        mask = TissueMask.of(view.source.slide, size_px * min(view.step)) if min_tissue > 0 else None
        lefts = np.arange(0, view.width - size_px + 1, stride_px)
        for top in range(0, view.height - size_px + 1, stride_px):
            empty = np.zeros(len(lefts), np.bool_)
            if mask:
                shares = mask.shares(top * step_y, (top + size_px) * step_y, lefts * step_x, size_px * step_x)
                empty = mask.is_background(shares, min_tissue)
            for left, is_background in zip(lefts.tolist(), empty.tolist(), strict=True):
                x, y = round(left * step_x), round(top * step_y)
                tile = Tile(view, left, top, size_px)
                place = {"x": origin[0] + x, "y": origin[1] + y, "tail": f"_x{x}_y{y}"}
                yield Input(path, stem, tile, **fields, **place, is_background=is_background)

    def _check_openslide(self, slides: list[Path]) -> None:
        reader = self.source.config.slide_reader
        for file in slides:
            wanted = reader == "openslide" or (reader == "auto" and file.suffix.lower() in VENDOR_SUFFIXES)
            if wanted and openslide_module() is None:
                raise DataError(f"{file}: needs OpenSlide, which is not installed; {INSTALL}")

    def _tiles_per_byte(self, slides: list[Path]) -> float:
        size_px, stride_px = self.source.config.tile_px, self.source.config.stride_px or self.source.config.tile_px
        for file in slides[:_SLIDES_TO_MEASURE]:
            try:
                view = self._view(file)
            except UnusableError:
                continue
            columns, rows = ((side - size_px) // stride_px + 1 for side in (view.width, view.height))
            return columns * rows / _num_bytes(file)
        return 0.0


def _stem(path: str) -> str:
    return path[: path.rindex(".")] if "." in path.rpartition("/")[2] else path


def _num_bytes(file: Path) -> int:
    sizes = [state[0] for part in (file, *parts_of(file)) if (state := file_state(part))]
    return max(1, sum(sizes))
