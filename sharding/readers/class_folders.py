"""`class-folders`: every folder of a folder or archive is a class and holds its images, at any depth."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from hdtrain.errors import DataError
from sharding.readers.base import Unit, as_text
from sharding.readers.image_files import ImageFileReader
from sharding.readers.tree import FileTree


class ClassFolderReader(ImageFileReader):
    """The label of an image is the name of the first folder on its path."""

    @cached_property
    def classes(self) -> list[str]:
        """The folders' names; raises DataError where there are no folders, or images beside them."""
        root = self.source.path
        if isinstance(self.tree, FileTree):
            raise DataError(
                f"{root}: a file; layout class-folders expects a folder, zip or tar with one folder a class"
            )
        top = self.tree.listing("")
        if not top.folders:
            raise DataError(f"{root}: no class folders; expected one sub-folder a class, or set layout: flat")
        if top.files:
            raise DataError(f"{root}: images beside the class folders; move them into a class, or set layout: flat")
        return [as_text(name) for name in top.folders]

    def units(self) -> Iterator[Unit]:
        """Class by class; raises DataError for what `classes` says, and for a class without images."""
        empty = []
        for name, text in zip(self.tree.listing("").folders, self.classes, strict=False):
            found = False
            for unit in self.tree.units(name, self.unit_inputs):
                found = True
                yield unit
            if not found:
                empty.append(repr(text))
        if empty:
            raise DataError(
                f"{self.source.path}: empty class {', '.join(empty)}: no image in the folder; fill or remove it"
            )

    def about(self, path: str) -> dict[str, Any]:
        """The label."""
        return {"label": path.partition("/")[0]}
