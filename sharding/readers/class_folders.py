"""`class-folders`: every sub-folder is a class and holds its images, at any depth."""

from collections.abc import Iterator

from hdtrain.errors import DataError
from sharding.candidate import Candidate
from sharding.readers.files import Reader, Source, has_images, image_files, subfolders


def read(source: Source) -> Reader:
    """Open the source.

    Raises:
        DataError: no sub-folders, images beside them, or a class without images.
    """
    root = source.config.path
    folders = subfolders(root)
    if not folders:
        raise DataError(f"{root}: no class folders; expected one sub-folder a class, or set layout: flat")
    if has_images(root):
        raise DataError(f"{root}: images beside the class folders; move them into a class, or set layout: flat")
    empty = [folder.name for folder in folders if next(image_files(folder), None) is None]
    if empty:
        raise DataError(f"{root}: empty class {', '.join(map(repr, empty))}: no image in the folder; fill or remove it")

    def candidates() -> Iterator[Candidate]:
        for folder in folders:
            for file in image_files(folder):
                yield from source.image(file, folder.name)

    return Reader(source, [folder.name for folder in folders], candidates)
