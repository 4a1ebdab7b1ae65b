import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from reader_helpers import make_tar, make_zip, opened

from hdtrain.errors import DataError
from hdtrain.formats.tar import TarWriter


def write_tar(path: Path, *names: str) -> Path:
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for name in names:
            writer.add(name, b"{}")
        writer.close()
    return path


def add(root: Path, kind: str) -> Path:
    """Put a small file of that kind into the folder."""
    images = np.zeros((2, 16, 16, 3), np.uint8)
    path = root / {"pannuke": "images.npy", "webdataset": "a.tar", "slide": "a.svs", "hdf5": "a.h5"}.get(
        kind, f"a.{kind}"
    )
    if kind == "hdf5":
        with h5py.File(path, "w") as made:
            made["img"] = images
    elif kind == "pannuke":
        np.save(path, images)
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [b"x"]}), path)
    elif kind == "webdataset":
        write_tar(path, "1.png", "1.json")
    elif kind == "slide":
        tifffile.imwrite(path, images[0], photometric="rgb", tile=(16, 16))
    return path


KINDS = {
    "hdf5": "Hdf5Reader",
    "pannuke": "NpyReader",
    "parquet": "ParquetReader",
    "webdataset": "WebDatasetReader",
    "slide": "SlideReader",
}


def layout_of(path: Path) -> str:
    return type(opened(path)).__name__


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_recognised_alone_in_a_folder_and_deep_in_one(tmp_path: Path, kind: str) -> None:
    deep = tmp_path / "root" / "one" / "two" / "three"
    deep.mkdir(parents=True)
    file = add(deep, kind)
    (tmp_path / "root" / "README.md").write_text("text")
    (tmp_path / "root" / "one" / "masks.npy").write_bytes(b"")
    assert {layout_of(path) for path in (file, deep, tmp_path / "root")} == {KINDS[kind]}


def test_images_are_class_folders_or_flat(make_images: Callable[..., Path], tmp_path: Path) -> None:
    classes, flat = make_images("classes", {"b": 2, "a": 1}), make_images("flat", 2)
    archives = [make(classes, tmp_path / f"c.{kind}") for make, kind in ((make_zip, "zip"), (make_tar, "tar"))]
    assert {layout_of(path) for path in (classes, *archives)} == {"ClassFolderReader"}
    archives = [make(flat, tmp_path / f"f.{kind}") for make, kind in ((make_zip, "zip"), (make_tar, "tar"))]
    assert {layout_of(path) for path in (flat, flat / "000.png", *archives)} == {"FlatReader"}


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".svs", ".ndpi", ".mrxs"])
def test_a_single_file_that_may_be_a_slide_is_one(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    assert layout_of(tmp_path / f"a{suffix}") == "SlideReader"


def test_a_folder_of_tiffs_is_a_folder_of_images_but_slides_make_it_one_of_slides(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    assert layout_of(tmp_path) == "FlatReader"
    (tmp_path / "below").mkdir()
    add(tmp_path / "below", "slide")
    assert layout_of(tmp_path) == "SlideReader"


def test_files_of_several_layouts_are_not_guessed(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"a": 1, "b": 1})
    add(root, "hdf5")
    with pytest.raises(DataError, match=r"raw: files of several layouts \(a\.h5, a/000\.png\); say layout, or name"):
        opened(root)
    add(root, "parquet")
    with pytest.raises(DataError, match=r"a\.h5, a\.parquet, a/000\.png"):
        opened(root)


def test_compressed_files_count_only_where_there_is_nothing_else(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {})
    root.mkdir()
    (root / "labels.csv.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(DataError, match=r"labels\.csv\.gz: compressed.*gunzip"):
        opened(root)
    make_images("raw", {"a": 1, "b": 1})
    assert layout_of(root) == "ClassFolderReader"


def test_archives_in_a_folder_are_not_guessed(make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images("raw", {"a": 1, "b": 1})
    (tmp_path / "zips").mkdir()
    make_zip(images, tmp_path / "zips" / "1.zip")
    with pytest.raises(DataError, match="zips: archives of images; give each as a source of its own"):
        opened(tmp_path / "zips")


def test_only_the_first_members_decide_whether_a_tar_is_webdataset(tmp_path: Path) -> None:
    images = [f"{'ab'[number % 2]}/{number}.png" for number in range(100)]
    assert layout_of(write_tar(tmp_path / "1.tar", *images, "b/99.cls")) == "ClassFolderReader"
    assert layout_of(write_tar(tmp_path / "2.tar", "a/0.cls", *images)) == "WebDatasetReader"
    assert layout_of(write_tar(tmp_path / "3.tar", "a/0.json", "a/1.json")) == "FlatReader"
