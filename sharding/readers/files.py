"""What the layouts share: finding image files, reading fields from their names, cutting them into tiles."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from hdtrain.config.shards import SourceConfig
from hdtrain.errors import DataError
from sharding.candidate import Candidate, make_key
from sharding.images import Alpha, UnusableError, decode
from sharding.tiles import BrokenRaster, ImageRaster, Raster, Tile, file_state, grid

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
FOREIGN_SUFFIXES = frozenset({".bmp", ".gif", ".webp", ".jp2", ".jpx", ".avif", ".heic"})
"""Images that are listed, so that they are rejected and counted instead of overlooked."""
PATTERN_GROUPS = ("slide", "patient", "x", "y")


@dataclass(frozen=True)
class Source:
    """A source with what every layout needs to make candidates of its files."""

    config: SourceConfig
    alpha: Alpha = "white"

    @property
    def name(self) -> str:
        """The configured name, else the folder's or the file's (without its suffix)."""
        path = self.config.path
        return self.config.name or (path.name if path.is_dir() else path.stem) or path.resolve().name

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """The compiled `pattern`; raises DataError."""
        if self.config.pattern is None:
            return None
        where = f"source '{self.name}': pattern '{self.config.pattern}'"
        try:
            pattern = re.compile(self.config.pattern)
        except re.error as error:
            raise DataError(f"{where} is not a regular expression: {error}") from None
        if not pattern.groupindex or not set(pattern.groupindex) <= set(PATTERN_GROUPS):
            found = ", ".join(pattern.groupindex) or "none"
            raise DataError(f"{where}: expected named groups out of {', '.join(PATTERN_GROUPS)}, got {found}")
        return pattern

    def fields(self, file: Path) -> dict[str, Any]:
        """`slide`, `patient`, `x`, `y` from the file's name; empty where the pattern does not match."""
        match = self.pattern.search(file.name) if self.pattern else None
        fields: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v is not None} if match else {}
        for axis in {"x", "y"} & fields.keys():
            try:
                fields[axis] = int(fields[axis])
            except ValueError:
                raise DataError(
                    f"{file}: pattern group '{axis}' found '{fields[axis]}', expected a whole number"
                ) from None
        return fields

    def candidate(self, file: Path, label: str | None, tile: Tile | None = None, **fields: Any) -> Candidate:
        """One candidate; x and y of a tile are added to those in the file's name."""
        root = self.config.path
        path = _text(file.name if file == root else file.relative_to(root).as_posix())
        stem = path[: -len(file.suffix)] if file.suffix else path
        found = self.fields(file)
        identity, tail = f"{self.name}/{path}", ""
        if tile:
            found |= {"x": found.get("x", 0) + tile.left, "y": found.get("y", 0) + tile.top}
            found.setdefault("slide", _text(file.stem))
            tail = f"_x{tile.left}_y{tile.top}"
        return Candidate(
            key=make_key(f"{_text(self.name)}_{stem}", tail),
            identity=identity + tail,
            source=self.name,
            file=file,
            path=path,
            label=label,
            min_tissue=self.config.min_tissue,
            tile=tile,
            **{"mpp": self.config.mpp, **fields, **found},
        )

    def image(self, file: Path, label: str | None = None) -> Iterator[Candidate]:
        """The file whole, or with `tile_images` its tiles where it is larger than one."""
        size = _size_px(file, self.alpha) if self.config.tile_images else None
        if size and max(size) > self.config.tile_px:
            yield from self.tiles(file, label, ImageRaster(file, self.alpha, file_state(file)), *size)
        else:
            yield self.candidate(file, label)

    def tiles(
        self, file: Path, label: str | None, raster: Raster, width: int, height: int, **fields: Any
    ) -> Iterator[Candidate]:
        """Every tile of the grid; a single bad candidate where not one fits."""
        size_px = self.config.tile_px
        positions = list(grid(width, height, size_px, self.config.stride_px or size_px))
        for left, top in positions:
            yield self.candidate(file, label, Tile(raster, left, top, size_px), **fields)
        if not positions:
            yield self.broken(file, label, f"smaller than a tile of {size_px} px")

    def broken(self, file: Path, label: str | None, reason: str) -> Candidate:
        """A candidate that will be refused with `reason`."""
        return self.candidate(file, label, Tile(BrokenRaster(reason), 0, 0, self.config.tile_px))


@dataclass(frozen=True)
class Reader:
    """A source, opened: iterate for its candidates, lazily and in a fixed order."""

    source: Source
    classes: list[str] | None
    """Folder names, sorted; None where the layout has no classes."""
    candidates: Callable[[], Iterator[Candidate]]

    def __iter__(self) -> Iterator[Candidate]:
        return self.candidates()


def image_files(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES | FOREIGN_SUFFIXES) -> Iterator[Path]:
    """Image files below `folder`, hidden ones left out, in the order of their names."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from image_files(entry, suffixes)
        elif entry.suffix.lower() in suffixes:
            yield entry


def subfolders(folder: Path) -> list[Path]:
    """Visible folders right in `folder`, sorted by name."""
    return [entry for entry in _entries(folder) if entry.is_dir()]


def has_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES | FOREIGN_SUFFIXES) -> bool:
    """Whether an image lies right in `folder`."""
    return any(entry.suffix.lower() in suffixes and not entry.is_dir() for entry in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from None


def _size_px(file: Path, alpha: Alpha) -> tuple[int, int] | None:
    """(width, height) from the header; None where the file is no image, which is found again when it is decoded."""
    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        pass
    try:
        height, width, _ = decode(file.read_bytes(), alpha).pixels.shape
        return width, height
    except (OSError, UnusableError):
        return None


def _text(name: str) -> str:
    """A file name as UTF-8; bytes that are none are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
