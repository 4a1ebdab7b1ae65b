"""What the layouts of image files share: inputs of files whole, or with `tile_images` of the tiles of large ones."""

import io
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from PIL import Image

from hdtrain.errors import DataError
from sharding.images import Alpha, UnusableError, decode
from sharding.inputs import Broken, ByteRange, Input
from sharding.readers.archive import open_tree
from sharding.readers.base import UNIT_INPUTS, Reader, Source, Unit, as_text
from sharding.readers.tree import IMAGE_SUFFIXES, Stored, Tree
from sharding.tiles import ImageRaster, Tile, grid


class ImageFileReader(Reader):
    """A folder, zip or tar of image files; layouts say what a file's path tells about it."""

    unit_inputs = UNIT_INPUTS

    @cached_property
    def tree(self) -> Tree:
        """The folder, archive or single file; raises DataError."""
        return open_tree(self.source.path)

    def units(self) -> Iterator[Unit]:
        """Every image at any depth; raises DataError where there is none."""
        found = False
        for unit in self.tree.units(size=self.unit_inputs):
            found = True
            yield unit
        if not found:
            raise no_images(self.tree)

    def state(self, unit: Unit) -> str:
        """Names, sizes and times of change, hashed."""
        return self.tree.state(unit)

    def read(self, unit: Unit) -> Iterator[Input]:
        """The unit's images, or their tiles."""
        for path, content in self.tree.read(unit):
            text = as_text(path)
            problem = self.problem(text)
            content = Broken(problem) if problem else content
            yield from image_inputs(self.source, text, content, self.about(text))

    def about(self, path: str) -> dict[str, Any]:
        """Fields that the path tells; those that `pattern` finds come first."""
        return {}

    def problem(self, path: str) -> str | None:
        """Why an image of this path cannot be used."""
        return None


def no_images(tree: Tree) -> DataError:
    """The error for a source without any image."""
    others = getattr(tree, "others", {})
    readable = next((name for suffix, name in sorted(others.items()) if suffix in _NEEDS_UNPACKING), None)
    if readable:
        return DataError(
            f"{tree.path}: no images, but {as_text(readable)}: unpack the archive; images alone are read in it"
        )
    return DataError(f"{tree.path}: no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")


_NEEDS_UNPACKING = frozenset({".h5", ".hdf5", ".npy", ".parquet", ".svs", ".ndpi", ".mrxs", ".tar", ".zip", ".gz"})


def image_inputs(source: Source, path: str, content: Stored, about: dict[str, Any]) -> Iterator[Input]:
    """The image whole, or with `tile_images` its tiles where it is larger than one.

    x and y of a tile are added to those that are known of the image; without a known slide the image is its tiles'.
    A single bad input where not one tile fits.
    """
    config = source.config
    fields = {"mpp": config.mpp, "min_tissue": config.min_tissue} | about | source.fields(path)
    stem = os.path.splitext(path)[0]  # noqa: PTH122  of a member too
    size = _size_px(content, source.alpha) if config.tile_images else None
    if size is None or max(size) <= config.tile_px:
        yield Input(path, stem, content, **fields)
        return
    fields.setdefault("slide", stem.rpartition("/")[2])
    x, y = fields.pop("x", 0), fields.pop("y", 0)
    raster = ImageRaster(content, source.alpha)
    is_cut = False
    for left, top in grid(*size, config.tile_px, config.stride_px or config.tile_px):
        is_cut = True
        tile = Tile(raster, left, top, config.tile_px)
        yield Input(path, stem, tile, x=x + left, y=y + top, tail=f"_x{left}_y{top}", **fields)
    if not is_cut:
        reason = f"smaller than a tile of {config.tile_px} px"
        yield Input(path, stem, Broken(reason), x=x, y=y, tail="_x0_y0", **fields)


def _size_px(content: Stored, alpha: Alpha) -> tuple[int, int] | None:
    """(width, height) from the header; None where it is no image, which is found again when it is decoded."""
    try:
        is_file = type(content) is ByteRange and content.offset == 0
        with Image.open(content.path if is_file else io.BytesIO(content.load())) as image:  # type: ignore[union-attr]
            return image.size
    except (OSError, ValueError, SyntaxError, UnusableError):
        pass
    try:
        height, width, _ = decode(content.load(), alpha).pixels.shape
        return width, height
    except (OSError, UnusableError):
        return None
