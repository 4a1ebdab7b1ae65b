"""One file a layout. `open_source` finds the right one."""

from hdtrain.config.shards import SourceConfig
from hdtrain.errors import DataError
from sharding.images import Alpha
from sharding.readers import class_folders, flat, slide
from sharding.readers.files import Reader, Source, has_images, image_files, subfolders

__all__ = ["Reader", "open_source"]

_LAYOUTS = {"class-folders": class_folders.read, "flat": flat.read, "slide": slide.read}


def open_source(config: SourceConfig, alpha: Alpha = "white") -> Reader:
    """Open a source; nothing is decoded before its candidates are loaded.

    Raises:
        DataError: missing path, no images, no or empty class folders, a bad pattern, or a layout that is not plain.
    """
    if not config.path.exists():
        raise DataError(f"{config.path}: no such file or folder (source '{config.name or config.path.name}')")
    source = Source(config, alpha)
    layout = _look(config) if config.layout == "auto" else config.layout
    if layout == "class-folders" and not config.path.is_dir():
        raise DataError(f"{config.path}: a file; layout class-folders expects a folder with one sub-folder a class")
    reader = _LAYOUTS[layout](source)
    if source.pattern and not any(source.fields(candidate.file) for candidate in reader):
        raise DataError(f"source '{source.name}': pattern '{config.pattern}' matches no file name in {config.path}")
    return reader


def _look(config: SourceConfig) -> str:
    root = config.path
    if root.is_file():
        return "slide" if root.suffix.lower() in slide.SLIDE_SUFFIXES else "flat"
    if any(path.suffix.lower() == ".svs" for path in image_files(root, slide.SLIDE_SUFFIXES)):
        return "slide"
    direct, below = has_images(root), [folder for folder in subfolders(root) if has_images(folder)]
    if direct and not below:
        return "flat"
    if below and not direct:
        return "class-folders"
    if next(image_files(root), None) is None:
        return "flat"
    what = "images both in the folder and below it" if direct else "images only two or more folders down"
    raise DataError(
        f"{root}: {what}; say layout: flat or layout: class-folders, or name the folder that holds the classes"
    )
