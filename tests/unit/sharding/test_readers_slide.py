import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from slide_helpers import REAL, Pixels, damage, noise, resolution, write_slide

from hdtrain.config.shards import SourceConfig
from hdtrain.errors import DataError
from sharding.images import UnusableError
from sharding.inputs import Input, make_key
from sharding.readers.base import Source, Unit
from sharding.readers.slide import SlideReader
from sharding.tiles import grid, tissue_share


def reader(path: Path, **config: Any) -> SlideReader:
    return SlideReader(Source(SourceConfig.model_validate({"path": path, "layout": "slide", **config})))


def listed(path: Path, **config: Any) -> list[Input]:
    opened = reader(path, **config)
    return [item for unit in opened.units() for item in opened.read(unit)]


def outcome(item: Input) -> Pixels | str:
    try:
        content = item.content.load()
    except UnusableError as error:
        return str(error)
    assert isinstance(content, np.ndarray)
    return content


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("s.tif", pixels, …)`: a slide in the folder `slides`."""
    (tmp_path / "slides").mkdir()

    def make(name: str, *levels: Pixels, **options: Any) -> Path:
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_slide(path, *levels, **options)

    return make


# What is found


def test_slides_are_found_at_any_depth_in_the_order_of_their_names(write: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b.svs", "a/z.TIFF", "a/c/y.tif", ".hidden.svs", "c.tif"):
        write(name, noise(64, 64))
    folder = tmp_path / "slides"
    units = list(reader(folder, tile_px=32).units())
    assert [unit.path for unit in units] == ["a/c/y.tif", "a/z.TIFF", "b.svs", "c.tif"]
    items = listed(folder, tile_px=32)
    assert [item.path for item in items[::4]] == [unit.path for unit in units]
    assert [item.stem for item in items[::4]] == ["a/c/y", "a/z", "b", "c"]


def test_other_images_among_slides_are_not_overlooked(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a.tif", noise(64, 64))
    Image.new("RGB", (64, 64)).save(tmp_path / "slides" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "slides" / "b.JPG")
    (tmp_path / "slides" / "notes.txt").write_text("no image")
    found = [(item.path, outcome(item)) for item in listed(tmp_path / "slides", tile_px=64)]
    assert [path for path, _ in found] == ["a.png", "a.tif", "b.JPG"]
    assert [found[0][1], found[2][1]] == ["not a slide: .png file", "not a slide: .jpg file"]


def test_a_folder_without_slides_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no slides; expected files ending in .*\.svs"):
        list(reader(tmp_path).units())
    with pytest.raises(DataError, match="no slides"):
        list(reader(tmp_path / "a.png").units())


def test_files_that_belong_to_a_slide_are_no_inputs_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("one.mrxs", "one/Data0000.dat", "one/preview.png", "two(0,0).jpg", "two_map.jpg", "stray.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "two.vms").write_text("[Virtual Microscope Specimen]\nImageFile=two(0,0).jpg\nMapFile=two_map.jpg\n")
    assert [unit.path for unit in reader(tmp_path).units()] == ["one.mrxs", "stray.jpg", "two.vms"]


def test_a_unit_is_another_when_any_file_of_the_slide_changed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("one.mrxs", "one/Data0000.dat", "two.svs"):
        (tmp_path / name).write_bytes(b"x")
    opened = reader(tmp_path)
    before = [opened.state(unit) for unit in opened.units()]
    (tmp_path / "one/Data0000.dat").write_bytes(b"xy")
    after = [opened.state(unit) for unit in opened.units()]
    assert before[0] != after[0]
    assert before[1] == after[1]


@pytest.mark.parametrize("config", [{}, {"slide_reader": "openslide"}])
def test_without_openslide_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str]
) -> None:
    name = "s.tif" if config else "s.ndpi"
    write_slide(tmp_path / name, noise(64, 64))
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(DataError, match=rf"{name}: needs OpenSlide.*pip install 'hdtrain\[slides\]'"):
        list(reader(tmp_path, **config).units())


def test_without_openslide_tifffiles_slides_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "s.tif", noise(64, 64))
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((64, 64), np.uint8), tile=(32, 32), metadata=None)
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert isinstance(outcome(listed(path, tile_px=64)[0]), np.ndarray)
    (gray,) = listed(tmp_path / "t.tif", tile_px=64)
    assert outcome(gray) == (
        "unsupported mode: uint8 of 1 samples; OpenSlide may read it: pip install 'hdtrain[slides]'"
    )


def test_the_reader_can_be_chosen(write: Callable[..., Path]) -> None:
    path = write("s.tif", noise(64, 64))
    assert [type(item.content.raster.source.slide).__name__ for item in listed(path, tile_px=64)] == ["TiffSlide"]  # type: ignore[attr-defined]
    chosen = listed(path, tile_px=64, slide_reader="openslide")
    assert [type(item.content.raster.source.slide).__name__ for item in chosen] == ["VendorSlide"]  # type: ignore[attr-defined]
    other = path.rename(path.with_suffix(".scn"))
    (item,) = listed(other, tile_px=64, slide_reader="tifffile")
    assert outcome(item) == "unsupported format: tifffile does not read .scn slides"


def test_inputs_are_counted_beforehand(real_data: Path) -> None:
    opened = reader(real_data / "wsi" / REAL[1], tile_px=200, stride_px=150)
    (unit,) = opened.units()
    assert unit.num_inputs == len(list(opened.read(unit))) == 29 * 23


# Tiles


@pytest.mark.parametrize("slide_reader", ["tifffile", "openslide"])
@pytest.mark.parametrize("name", REAL)
def test_tiles_of_real_slides_are_regions_of_the_whole(real_data: Path, name: str, slide_reader: str) -> None:
    path = real_data / "wsi" / name
    whole = tifffile.imread(path, key=0)
    items = listed(path, tile_px=200, stride_px=500, slide_reader=slide_reader)
    assert [(item.x, item.y) for item in items] == list(grid(whole.shape[1], whole.shape[0], 200, 500))
    for item in items[:: len(items) // 5]:
        np.testing.assert_array_equal(outcome(item), whole[item.y : item.y + 200, item.x : item.x + 200])
    last = items[-1]
    assert (last.path, last.stem, last.slide) == (name, Path(name).stem, Path(name).stem)
    assert make_key("s", last.stem, last.tail).endswith(f"_x{last.x}_y{last.y}")
    assert {item.mpp for item in items} == {0.499 if name.startswith("CMU") else None}
    assert {item.patient for item in items} == {None if name.startswith("CMU") else "TCGA-CR-7395"}


def test_an_ordinary_png_is_no_slide(real_data: Path) -> None:
    found = listed(real_data / "wsi", tile_px=1000, stride_px=2000)
    assert [outcome(item) for item in found if item.path.endswith(".png")] == ["not a slide: .png file"]
    assert {item.path for item in found} == {*REAL, "OS-1_breast_1101px.png"}


def test_coordinates_are_those_of_the_finest_level(write: Callable[..., Path]) -> None:
    pixels = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16, np.ones((64, 64, 3), np.uint8))
    path = write("s.tif", pixels, **resolution(0.25))
    items = listed(path, tile_px=16, target_mpp=1.0)
    assert [(item.x, item.y) for item in items] == list(grid(256, 256, 64, 64))
    assert {item.mpp for item in items} == {1.0}
    for item in items:
        tile = outcome(item)
        assert isinstance(tile, np.ndarray)
        assert tile.shape == (16, 16, 3)
        assert (tile[4:12, 4:12] == pixels[item.y, item.x]).all()


@settings(max_examples=40, deadline=None)
@example(size=(74, 147), tile_px=8, stride_px=4, target=4.625)  # averaged by 2, the last pixel is there by half
@example(size=(73, 101), tile_px=8, stride_px=3, target=4.625)
@given(
    size=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    tile_px=st.integers(8, 40),
    stride_px=st.integers(3, 60),
    target=st.one_of(st.none(), st.floats(0.48, 6)),
)
def test_tiles_lie_inside_the_slide_and_none_is_missing(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    tile_px: int,
    stride_px: int,
    target: float | None,
) -> None:
    height, width = size
    path = write_slide(tmp_path_factory.mktemp("s") / "s.tif", noise(height, width), **resolution(0.5))
    items = listed(path, tile_px=tile_px, stride_px=stride_px, target_mpp=target)
    scale = 1.0 if target is None or abs(target / 0.5 - 1) <= 0.01 else target / 0.5
    columns, rows = (int((side / scale + 1e-6 - tile_px) // stride_px) + 1 for side in (width, height))
    if min(columns, rows) <= 0:
        assert [outcome(item) for item in items] == [f"smaller than a tile of {tile_px} px"]
        return
    places = [(item.x, item.y) for item in items]
    assert len(set(places)) == len(places) == columns * rows
    assert set(places) == {
        (round(column * stride_px * scale), round(row * stride_px * scale))
        for column in range(columns)
        for row in range(rows)
    }
    assert max(item.x or 0 for item in items) + tile_px * scale <= width + 1
    last = outcome(items[-1])
    assert isinstance(last, np.ndarray)
    assert last.shape == (tile_px, tile_px, 3)
    assert last.dtype == np.uint8


def test_a_pattern_names_slide_and_patient_and_shifts_the_origin(write: Callable[..., Path]) -> None:
    path = write("P7_S12_x1000_y2000.tif", noise(64, 64))
    pattern = r"(?P<patient>P\d+)_(?P<slide>S\d+)_x(?P<x>\d+)_y(?P<y>\d+)"
    items = listed(path, tile_px=32, pattern=pattern, mpp=0.5)
    assert {(item.patient, item.slide, item.mpp) for item in items} == {("P7", "S12", 0.5)}
    assert [(item.x, item.y, item.tail) for item in items][-1] == (1032, 2032, "_x32_y32")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("TCGA-CR-7395-01A-01-TS1.1b3-4.svs", "TCGA-CR-7395"),
        ("TCGA-CR-73950.svs", None),
        ("x-TCGA-CR-7395.svs", None),
    ],
)
def test_the_patient_is_read_from_the_barcode(write: Callable[..., Path], name: str, patient: str | None) -> None:
    (item,) = listed(write(name, noise(64, 64)), tile_px=64)
    assert (item.patient, item.slide) == (patient, name[:-4])


# Tissue


@pytest.mark.parametrize("target", [None, 2.0])
def test_background_is_what_has_too_little_tissue_in_the_overview(real_data: Path, target: float | None) -> None:
    path, tile_px = real_data / "wsi" / REAL[0], 256 if target is None else 64
    items = listed(path, tile_px=tile_px, min_tissue=0.5, target_mpp=target)
    everything = listed(path, tile_px=tile_px, target_mpp=target)
    assert [(i.x, i.y) for i in items] == [(i.x, i.y) for i in everything]
    assert not any(item.is_background for item in everything)
    assert {item.min_tissue for item in items} == {0.0}  # not judged again
    whole = tifffile.imread(path, key=0)
    small = Image.fromarray(whole).reduce(16)
    side = tile_px * (target or 0.499) / 0.499
    marked, clear = 0, 0
    for item in items:
        box = tuple(edge / 16 for edge in (item.x, item.y, item.x + side, item.y + side))
        share = tissue_share(np.asarray(small.crop(tuple(map(round, box)))))
        if abs(share - 0.5) > 0.1:
            assert item.is_background == (share < 0.5), (item.x, item.y, share)
            marked, clear = marked + item.is_background, clear + 1
    assert 5 < marked < clear - 5


def test_all_of_a_tile_may_be_asked_to_be_tissue(write: Callable[..., Path]) -> None:
    pixels = np.full((512, 512, 3), (200, 90, 160), np.uint8)
    pixels[:256, :256] = 245
    items = listed(write("s.tif", pixels), tile_px=128, stride_px=96, min_tissue=1.0)
    kept = {(item.x, item.y) for item in items if not item.is_background}
    assert kept == {(x, y) for x, y in grid(512, 512, 128, 96) if x >= 256 or y >= 256}


def test_background_is_never_decoded(write: Callable[..., Path]) -> None:
    """Its segments may even be damaged, where a level of the pyramid shows that it is glass."""
    pixels, small = np.full((1024, 1024, 3), 245, np.uint8), np.full((64, 64, 3), 245, np.uint8)
    pixels[512:], small[32:] = (200, 90, 160), (200, 90, 160)
    path = damage(write("s.tif", pixels, small, subifds=True, tile=(256, 256)), [1, 13])
    items = listed(path, tile_px=256, min_tissue=0.5)
    assert [item.is_background for item in items] == [True] * 8 + [False] * 8
    found = [outcome(item) for item in items if not item.is_background]
    assert [isinstance(tile, str) for tile in found] == [False] * 5 + [True] + [False] * 2


# Damage


@pytest.mark.parametrize("slide_reader", ["tifffile", "openslide"])
@pytest.mark.parametrize("min_tissue", [0.0, 0.1])
def test_tiles_over_a_damaged_part_are_refused_and_the_others_survive(
    real_data: Path, tmp_path: Path, slide_reader: str, min_tissue: float
) -> None:
    """Segment 34 of 10 a row: columns 960 to 1199, rows 720 to 959, in tissue."""
    whole = tifffile.imread(real_data / "wsi" / REAL[0], key=0)
    path = tmp_path / "s.svs"
    path.write_bytes((real_data / "wsi" / REAL[0]).read_bytes())
    generator = np.random.default_rng(0)
    damage(path, [34], fill=generator.bytes)
    items = listed(path, tile_px=200, slide_reader=slide_reader, min_tissue=min_tissue)
    refused = set()
    with ThreadPoolExecutor(4) as pool:
        wanted = [item for item in items if not item.is_background]
        for item, tile in zip(wanted, pool.map(outcome, wanted), strict=True):
            if isinstance(tile, str):
                assert tile == "truncated or damaged"
                refused.add((item.x, item.y))
            else:
                np.testing.assert_array_equal(tile, whole[item.y : item.y + 200, item.x : item.x + 200])
    assert refused == {(x, y) for x in (800, 1000) for y in (600, 800)}


def test_a_slide_that_cannot_be_opened_is_one_input_with_its_reason(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    data = write("a.svs", noise(64, 64)).read_bytes()
    (folder / "b.svs").write_bytes(data[:100])
    (folder / "c.svs").write_bytes(b"")
    (folder / "d.tif").write_bytes(b"no TIFF at all")
    (folder / "e.tif").symlink_to("nowhere")
    (folder / "f.ndpi").write_bytes(b"not a slide")
    write("g.tif", noise(50, 64))
    (folder / "h.svs").write_bytes(data[:-20])
    assert [(item.path, outcome(item)) for item in listed(folder, tile_px=64)[1:]] == [
        ("b.svs", "truncated or damaged"),
        ("c.svs", "empty file"),
        ("d.tif", "not a TIFF"),
        ("e.tif", "unreadable: No such file or directory"),
        ("f.ndpi", "not a slide that OpenSlide can open"),
        ("g.tif", "smaller than a tile of 64 px"),
        ("h.svs", "truncated or damaged"),
    ]


def test_a_resolution_that_cannot_be_had_is_a_reason(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a.tif", noise(64, 64), **resolution(1.0))
    write("b.tif", noise(64, 64))
    found = listed(tmp_path / "slides", tile_px=32, target_mpp=0.5)
    assert [outcome(item) for item in found] == [
        "coarser than target_mpp: 1 µm a pixel, wanted 0.5",
        "resolution unknown: the file does not say its mpp, and the source has none",
    ]
    found = listed(tmp_path / "slides", tile_px=32, target_mpp=0.5, mpp=0.25)
    assert [(item.path, item.mpp) for item in found] == [("a.tif", 0.25), ("b.tif", 0.5)]


def test_a_slide_that_vanished_is_told(write: Callable[..., Path]) -> None:
    path = write("a.svs", noise(64, 64))
    opened = reader(path, tile_px=32)
    (unit,) = opened.units()
    assert unit == Unit("", num_inputs=4)
    path.unlink()
    assert [outcome(item) for item in opened.read(unit)] == ["unreadable: No such file or directory"]
