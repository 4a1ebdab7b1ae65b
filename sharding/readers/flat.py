"""`flat`: unlabelled images in a folder, at any depth, or a single image file."""

from collections.abc import Iterator

from hdtrain.errors import DataError
from sharding.candidate import Candidate
from sharding.readers.files import IMAGE_SUFFIXES, Reader, Source, image_files


def read(source: Source) -> Reader:
    """Open the source.

    Raises:
        DataError: there is no image.
    """
    root = source.config.path
    if root.is_dir() and next(image_files(root), None) is None:
        raise DataError(f"{root}: no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")

    def candidates() -> Iterator[Candidate]:
        for file in image_files(root) if root.is_dir() else [root]:
            yield from source.image(file)

    return Reader(source, None, candidates)
