"""`layout: auto`: recognise a source by its files, and refuse to guess where that is not plain."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hdtrain.config.shards import Layout
from hdtrain.errors import DataError
from sharding.readers.archive import is_archive, open_tree
from sharding.readers.base import as_text
from sharding.readers.hdf5 import Hdf5Reader
from sharding.readers.npz import NpzReader
from sharding.readers.pannuke import NpyReader
from sharding.readers.parquet import ParquetReader
from sharding.readers.tar_walk import COMPRESSED, compressed
from sharding.readers.tcga import barcodes
from sharding.readers.tree import LISTED_SUFFIXES, FolderTree, Tree, join, suffix
from sharding.readers.webdataset import is_webdataset
from sharding.slides.files import SLIDE_SUFFIXES, VENDOR_SUFFIXES

_Kind = Layout | Literal["images", "archive", "compressed"]
_SLIDES_ONLY = VENDOR_SUFFIXES | {".svs"}
_KINDS: dict[str, Layout] = {
    **dict.fromkeys(Hdf5Reader.suffixes, "hdf5"),
    **dict.fromkeys(NpyReader.suffixes, "pannuke"),
    **dict.fromkeys(NpzReader.suffixes, "npz"),
    **dict.fromkeys(ParquetReader.suffixes, "parquet"),
}
_ARCHIVES = frozenset({".tar", ".zip"})
_LOOKED_AT = 20_000
"""Files; the folder where that many are reached is still looked at whole."""
_NAMES_LOOKED_AT = 64


def recognise(path: Path) -> Layout:
    """The layout of a folder or file; the same in every process, since it looks in the order of names.

    Raises:
        DataError: it is not plain which layout it is, or it cannot be read.
    """
    if path.is_dir():
        return _recognise_folder(path)
    kind = suffix(path.name)
    if kind in SLIDE_SUFFIXES:
        return "slide"
    if kind in _KINDS:
        return _KINDS[kind]
    if kind == ".tar" and is_webdataset(path):
        return "webdataset"
    return _recognise_images(open_tree(path)) if is_archive(path) else "flat"


def _recognise_folder(root: Path) -> Layout:
    found: dict[_Kind, str] = {}
    for name in _first_files(
        FolderTree(root, LISTED_SUFFIXES | _SLIDES_ONLY | _ARCHIVES | COMPRESSED.keys() | _KINDS.keys())
    ):
        found.setdefault(_kind_of(suffix(name)), name)
    if "slide" in found:
        return "slide"
    if len(found) > 1:
        found.pop("compressed", None)
    if len(found) > 1:
        examples = ", ".join(as_text(name) for name in found.values())
        raise DataError(f"{root}: files of several layouts ({examples}); say layout, or name the folder of one of them")
    kind, name = next(iter(found.items()), ("images", ""))
    if kind == "images":
        return _recognise_images(FolderTree(root))
    if kind == "compressed":
        raise compressed(root / name, COMPRESSED[suffix(name)])
    return _recognise_archives(root / name) if kind == "archive" else kind


def _kind_of(ending: str) -> _Kind:
    if ending in _SLIDES_ONLY:
        return "slide"
    if ending in COMPRESSED:
        return "compressed"
    return "archive" if ending in _ARCHIVES else _KINDS.get(ending, "images")


def _recognise_archives(first: Path) -> Layout:
    if suffix(first.name) == ".tar" and is_webdataset(first):
        return "webdataset"
    raise DataError(
        f"{first.parent}: archives of images; give each as a source of its own, or say layout: webdataset to take "
        "every image in tars as an unlabelled sample"
    )


def _first_files(tree: Tree) -> Iterator[str]:
    """Files level by level, down to the level below the first that has some, or about 20,000."""
    level, num_found, levels_left = [""], 0, 2
    while level and levels_left and num_found < _LOOKED_AT:
        below = []
        for folder in level:
            listing = tree.listing(folder)
            files = [name for name in listing.files if suffix(name) != ".npy" or name == "images.npy"]
            yield from (join(folder, name) for name in files)
            num_found += len(files)
            below += [join(folder, name) for name in listing.folders]
            if num_found >= _LOOKED_AT:
                return
        level, levels_left = below, levels_left - (num_found > 0)


def _recognise_images(tree: Tree) -> Layout:
    top = tree.listing("")
    below = any(tree.listing(name).files for name in top.folders)
    first = next(tree.files(), None)
    if first is None:
        return "flat"  # which says that there are no images
    if all(barcodes(as_text(name)) for name in _names(tree)):
        if "/" not in first or barcodes(as_text(first.rpartition("/")[0])):
            return "tcga"
        raise DataError(
            f"{tree.path}: folders of images with TCGA barcodes in their names; say layout: tcga (patients, "
            "unlabelled) or layout: class-folders (labels; a pattern can give the patient)"
        )
    if top.files and not below:
        return "flat"
    if below and not top.files:
        return "class-folders"
    what = "images both in the folder and below it" if top.files else "images only two or more folders down"
    raise DataError(
        f"{tree.path}: {what}; say layout: flat or layout: class-folders, or name the folder that holds the classes"
    )


def _names(tree: Tree) -> Iterator[str]:
    for _, name in zip(range(_NAMES_LOOKED_AT), tree.files(), strict=False):
        yield name
