import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_helpers import described, listed, opened, outcome

from hdtrain.errors import DataError
from sharding.images import decode
from sharding.inputs import make_key


def test_class_folders_give_every_image_with_its_label_in_the_order_of_names(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"b": 2, "a/deep": 1, "a": 2})
    (root / "notes.txt").write_text("not an image")
    (root / "a" / ".hidden.png").write_bytes(b"")
    inputs = listed(root, mpp=0.5)
    paths = ["a/000.png", "a/001.png", "a/deep/000.png", "b/000.png", "b/001.png"]
    assert [item.path for item in inputs] == paths
    assert [item.stem for item in inputs] == [path[:-4] for path in paths]
    assert [item.label for item in inputs] == ["a", "a", "a", "b", "b"]
    assert {item.mpp for item in inputs} == {0.5}
    assert [outcome(item) for item in inputs] == [(root / path).read_bytes() for path in paths]
    assert opened(root).classes == ["a", "b"]


@pytest.mark.parametrize("unit_inputs", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("layout", ["class-folders", "flat"])
def test_the_order_does_not_depend_on_the_size_of_a_unit(
    make_images: Callable[..., Path], layout: str, unit_inputs: int
) -> None:
    root = make_images("raw", {"a": 5, "a/x": 1, "a/x/y": 2, "a/z": 0, "b/only/deep": 4, "c": 1, "c/d": 3})
    expected = described(listed(root, layout=layout))
    assert len(expected) == 16
    assert described(listed(root, unit_inputs, layout=layout)) == expected


def test_a_unit_does_not_mix_classes_but_folders(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"a/1": 3, "a/2": 3, "b": 4})
    reader = opened(root)
    assert [(unit.path, unit.start, unit.stop) for unit in reader.units()] == [("a/1", 0, 6), ("b", 0, 4)]


def test_many_units_of_one_folder_list_it_once(
    make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images("raw", {"a": 20, "b": 20})
    reader = opened(root)
    reader.unit_inputs = 2  # type: ignore[attr-defined]
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), scandir(path))[1])
    assert sum(len(list(reader.read(unit))) for unit in reader.units()) == 40
    assert sorted(Path(path).name for path in scanned) == ["a", "b", "raw"]


def test_auto_does_not_guess_when_the_layout_is_not_plain(make_images: Callable[..., Path]) -> None:
    make_images("deep/train", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"two or more folders down.*say layout"):
        listed(make_images("deep", {}))
    assert len(listed(make_images("deep", {}), layout="flat")) == 2
    with pytest.raises(DataError, match="both in the folder and below"):
        listed(make_images("mixed", {".": 1, "a": 1}))


@pytest.mark.parametrize(
    ("counts", "layout", "message"),
    [
        ({}, "auto", "no images"),
        ({"a": 1, "b": 0, "c": 0}, "auto", "empty class 'b', 'c': no image"),
        ({".": 2}, "class-folders", "no class folders"),
        ({".": 1, "a": 1}, "class-folders", "images beside the class folders"),
        ({"a": 1}, "hdf5", "no HDF5 files"),
        ({"a": 1}, "pannuke", r"no images\.npy files"),
        ({"a": 1}, "parquet", "no Parquet files"),
        ({"a": 1}, "webdataset", "no tar files"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    make_images: Callable[..., Path], tmp_path: Path, counts: dict[str, int], layout: str, message: str
) -> None:
    (tmp_path / "raw").mkdir()
    make_images("raw", counts)
    with pytest.raises(DataError, match=f"raw: {message}"):
        listed(tmp_path / "raw", layout=layout)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder \(source 'tissue'\)"):
        listed(tmp_path / "nowhere", name="tissue")


def test_one_image_is_a_source_and_has_no_class_folders(make_images: Callable[..., Path]) -> None:
    file = make_images("raw", 1) / "000.png"
    (item,) = listed(file)
    assert (item.path, item.stem, item.label, outcome(item)) == ("000.png", "000", None, file.read_bytes())
    with pytest.raises(DataError, match=r"000\.png: a file; layout class-folders expects"):
        listed(file, layout="class-folders")


def test_images_of_other_formats_are_listed_to_be_refused(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", 1)
    for name in ("a.WEBP", "b.gif", "c.txt"):
        (root / name).write_bytes(b"GIF89a")
    assert [item.path for item in listed(root)] == ["000.png", "a.WEBP", "b.gif"]


def test_links_are_followed_and_one_that_leads_nowhere_is_refused(make_images: Callable[..., Path]) -> None:
    root, other = make_images("raw", {"a": 1}), make_images("other", 2)
    (root / "b").symlink_to(other)
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "folder.png").mkdir()
    outcomes = {item.path: outcome(item) for item in listed(root)}
    assert outcomes.pop("a/gone.png") == "refused: unreadable: No such file or directory"
    assert list(outcomes) == ["a/000.png", "b/000.png", "b/001.png"]


def test_a_link_to_a_folder_above_is_an_error_and_no_endless_walk(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"a": 1})
    (root / "a" / "loop").symlink_to(root)
    with pytest.raises(DataError, match="loop: a link to a folder that it lies in"):
        listed(root, layout="class-folders")


def test_a_name_that_is_no_utf8_is_shown_and_its_image_is_read(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"a": 1})
    odd = os.fsdecode(b"gr\xf6n")
    (root / odd / odd).mkdir(parents=True)
    data = (root / "a" / "000.png").read_bytes()
    (root / odd / odd / f"{odd}.png").write_bytes(data)
    item = listed(root, 1, layout="class-folders")[1]
    assert (item.path, item.label) == (r"gr\xf6n/gr\xf6n/gr\xf6n.png", r"gr\xf6n")
    assert outcome(item) == data
    for unit in opened(root, layout="class-folders").units():
        unit.path.encode()  # parts are named after it, in JSON


def test_a_file_that_changes_or_goes_away_is_noticed(make_images: Callable[..., Path]) -> None:
    root = make_images("raw", {"a": 3, "b": 2})
    units = list(opened(root).units())
    before = [opened(root).state(unit) for unit in units]
    assert [opened(root).state(unit) for unit in units] == before
    (root / "b" / "001.png").write_bytes(b"other")
    after = [opened(root).state(unit) for unit in units]
    assert (after[0], after[1] != before[1]) == (before[0], True)
    (root / "b" / "001.png").rename(root / "b" / "002.png")
    assert opened(root).state(units[1]) not in (before[1], after[1])
    (root / "b" / "002.png").unlink()
    with pytest.raises(DataError, match="1 images fewer than were listed"):
        list(opened(root).read(units[1]))


def test_pattern_fills_the_fields(make_images: Callable[..., Path]) -> None:
    folder = make_images("p", 1)
    (folder / "000.png").rename(folder / "P7_S12_x300_y-4.png")
    pattern = r"(?P<patient>P\d+)_(?P<slide>S\d+)_x(?P<x>\d+)_y(?P<y>-?\d+)"
    (item,) = listed(folder, pattern=pattern, mpp=0.5)
    assert (item.patient, item.slide, item.x, item.y, item.mpp) == ("P7", "S12", 300, -4, 0.5)
    tile = listed(folder, pattern=pattern, tile_images=True, tile_px=8)[1]
    assert (tile.slide, tile.x, tile.y) == ("S12", 308, -4)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"\d+", "expected named groups"),
        (r"(?P<case>\d+)", "expected named groups"),
        ("(?P<slide>absent)", "matches no file name in"),
        (r"(?P<x>\.png)", "expected a whole number"),
    ],
)
def test_a_pattern_that_cannot_work_is_an_error(make_images: Callable[..., Path], pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(make_images("p", 1), pattern=pattern)


def test_a_pattern_is_tried_on_the_first_thousand_names_and_no_more(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number:04d}.png").touch()
    assert listed(tmp_path, pattern="(?P<slide>0999)")[999].slide == "0999"
    with pytest.raises(DataError, match="matches none of the first 1,000 file names"):
        listed(tmp_path, pattern="(?P<slide>1000)")


def test_large_images_are_cut_and_small_ones_kept_whole(make_images: Callable[..., Path]) -> None:
    folder = make_images("crops", 1, size_px=40)
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    Image.new("RGB", (40, 10)).save(folder / "thin.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    inputs = listed(folder, tile_images=True, tile_px=16)
    tiles = [("000.png", x, y) for y in (0, 16) for x in (0, 16)]
    whole = [("small.png", None, None), ("thin.png", 0, 0), ("torn.png", None, None)]
    assert [(item.path, item.x, item.y) for item in inputs] == [*tiles, *whole]
    assert [item.slide for item in inputs] == ["000"] * 4 + [None, "thin", None]
    pixels = decode((folder / "000.png").read_bytes()).pixels
    assert outcome(inputs[3]) == pixels[16:32, 16:32].tobytes()
    assert outcome(inputs[5]) == "refused: smaller than a tile of 16 px"
    assert len({make_key("crops", item.stem, item.tail) for item in inputs}) == len(inputs)


def test_real_jpegs_pass_through_untouched(real_data: Path) -> None:
    root = real_data / "eurosat_rgb"
    reader = opened(root)
    assert reader.classes is not None
    assert len(reader.classes) == 10
    units = list(reader.units())
    assert sum(unit.num_inputs for unit in units) == 3000
    for item in list(reader.read(units[3]))[:5]:
        data = (root / item.path).read_bytes()
        assert outcome(item) == data
        assert decode(data).pixels.shape == (64, 64, 3)
        assert item.label == reader.classes[3]


def test_a_real_crop_is_cut_into_its_tiles(real_data: Path) -> None:
    file = real_data / "wsi" / "OS-1_breast_1101px.png"
    inputs = listed(file, tile_images=True, tile_px=256)
    assert len(inputs) == 16
    pixels = decode(file.read_bytes()).pixels
    for item in inputs[5:7]:
        assert item.x is not None
        assert item.y is not None
        expected = pixels[item.y : item.y + 256, item.x : item.x + 256]
        np.testing.assert_array_equal(item.content.load(), expected)


def test_keys_of_odd_names_are_plain_and_short(make_images: Callable[..., Path]) -> None:
    folder = make_images("Größe", 0)
    names = ["a.b.png", "a b.png", "é.png", "…/a-b.png", "x" * 150 + "1.png", "x" * 150 + "2.png", "ok_1.png"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    reader = opened(folder, layout="flat")
    keys = [make_key(reader.source.name, item.stem) for unit in reader.units() for item in reader.read(unit)]
    assert all(key.isascii() and "." not in key and len(f"{key}.json") <= 100 for key in keys)
    assert "Gr-e_ok_1" in keys
    assert len({key for key in keys if "xxx" in key}) == 2


def test_a_long_tile_key_keeps_its_position() -> None:
    key = make_key("n" * 100, "n" * 100, "_x128_y4096")
    assert key.endswith("_x128_y4096")
    assert len(key) == 95


def test_names_that_differ_only_in_what_a_key_cannot_hold_stay_apart(
    pack: Callable[..., Any], make_images: Callable[..., Path]
) -> None:
    root = make_images("raw", 4)
    names = ["a b.png", "a-b.png", "a.b.png", "x" * 150 + ".png"]
    for number, name in enumerate(names):
        (root / f"{number:03d}.png").rename(root / name)
    index = pack(sources=[{"path": str(root)}]).index
    assert {row["path"] for row in index.values() if row["status"] == "ok"} == set(names)
    assert pack("again", sources=[{"path": str(root)}]).index == index
