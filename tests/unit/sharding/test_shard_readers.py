import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hdtrain.config.shards import SourceConfig
from hdtrain.errors import DataError
from sharding.candidate import Candidate, make_key, with_unique_keys
from sharding.images import decode
from sharding.readers import open_source
from sharding.tiles import PixelCache, grid, tissue_share


def listed(path: Path, **config: object) -> list[Candidate]:
    return list(open_source(SourceConfig.model_validate({"path": path, **config})))


def test_auto_tells_class_folders_flat_folders_and_slides_apart(make_images: Callable[..., Path]) -> None:
    assert [c.label for c in listed(make_images("a", {"b": 2, "a": 1}))] == ["a", "b", "b"]
    assert [c.label for c in listed(make_images("flat", 2))] == [None, None]
    slides = make_images("slides", 0)
    tifffile.imwrite(slides / "s1.svs", np.zeros((40, 70, 3), np.uint8), photometric="rgb", tile=(16, 16))
    assert [(c.slide, c.x, c.y) for c in listed(slides, tile_px=32)] == [("s1", 0, 0), ("s1", 32, 0)]


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
        ({"a": 1, "b": 0}, "auto", "empty class 'b'"),
        ({".": 2}, "class-folders", "no class folders"),
        ({".": 2}, "slide", "no slides"),
        ({".": 1, "a": 1}, "class-folders", "images beside the class folders"),
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


def test_pattern_fills_the_fields(make_images: Callable[..., Path]) -> None:
    folder = make_images("p", 1)
    (folder / "000.png").rename(folder / "P7_S12_x300_y-4.png")
    pattern = r"(?P<patient>P\d+)_(?P<slide>S\d+)_x(?P<x>\d+)_y(?P<y>-?\d+)"
    (candidate,) = listed(folder, pattern=pattern, mpp=0.5)
    fields = (candidate.patient, candidate.slide, candidate.x, candidate.y, candidate.mpp)
    assert fields == ("P7", "S12", 300, -4, 0.5)
    tile = listed(folder, pattern=pattern, tile_images=True, tile_px=8)[1]
    assert (tile.slide, tile.x, tile.y) == ("S12", 308, -4)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"\d+", "expected named groups"),
        (r"(?P<case>\d+)", "expected named groups"),
        ("(?P<slide>absent)", "matches no file name"),
        (r"(?P<x>\.png)", "expected a whole number"),
    ],
)
def test_a_pattern_that_cannot_work_is_an_error(make_images: Callable[..., Path], pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(make_images("p", 1), pattern=pattern)


def test_keys_are_plain_short_and_distinct(make_images: Callable[..., Path]) -> None:
    folder = make_images("Größe", 0)
    names = [
        "a.b.png",
        "a b.png",
        "a-b.jpg",
        "é.png",
        "…/a-b.png",
        "x" * 150 + "1.png",
        "x" * 150 + "2.png",
        "ok_1.png",
    ]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    candidates = listed(folder, layout="flat")
    keys = [c.key for c in with_unique_keys(candidates)]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and "." not in key and len(f"{key}.json") <= 100 for key in keys)
    assert "Gr-e_ok_1" in keys
    assert keys == [c.key for c in with_unique_keys(listed(folder, layout="flat"))]


def test_a_long_tile_key_keeps_its_position() -> None:
    key = make_key("n" * 200, "_x128_y4096")
    assert key.endswith("_x128_y4096")
    assert len(key) == 95


def test_grid_has_every_tile_that_lies_inside_and_no_other() -> None:
    assert list(grid(25, 16, 8, 8)) == [(0, 0), (8, 0), (16, 0), (0, 8), (8, 8), (16, 8)]
    assert list(grid(16, 8, 8, 4)) == [(0, 0), (4, 0), (8, 0)]
    assert list(grid(7, 100, 8, 8)) == []


def test_tissue_is_coloured_and_not_black() -> None:
    pixels = np.full((10, 10, 3), 240, np.uint8)
    assert tissue_share(pixels) == 0
    pixels[:3] = (200, 120, 180)
    assert tissue_share(pixels) == pytest.approx(0.3)
    pixels[3:6] = (20, 0, 10)  # saturated, but black: padding with compression noise
    assert tissue_share(pixels) == pytest.approx(0.3)
    pixels[6:] = (200, 187, 187)  # saturation 0.065
    assert tissue_share(pixels) == pytest.approx(0.3)


def test_the_cache_decodes_once_for_all_threads_and_stays_within_its_bytes() -> None:
    cache, made, gate = PixelCache(1000), [], threading.Barrier(4)

    def make(key: int) -> np.ndarray:
        made.append(key)
        return np.full(400, key, np.uint8)

    def ask(key: int) -> int:
        gate.wait()
        return int(cache.get(key, lambda: make(key))[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, [7] * 4)) == [7] * 4
    assert made == [7]
    for key in range(5):
        cache.get(key, lambda key=key: make(key))
        assert cache.bytes <= 1000
    with pytest.raises(ValueError, match="bad"):
        cache.get("x", lambda: (_ for _ in ()).throw(ValueError("bad")))
    assert cache.get("x", lambda: make(1))[0] == 1


@pytest.mark.parametrize("layout", [{"tile": (16, 32)}, {"rowsperstrip": 7}, {"rowsperstrip": 60}])
def test_a_slide_tile_is_the_region_of_the_whole(tmp_path: Path, layout: dict[str, object]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 75, 3), dtype=np.uint8)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", description="Aperio|MPP = 0.4990|x", **layout)
    tiles = listed(path, tile_px=24, stride_px=17)
    assert len(tiles) == 4 * 3
    for tile in tiles:
        assert tile.mpp == 0.499
        expected = pixels[tile.y : tile.y + 24, tile.x : tile.x + 24]
        np.testing.assert_array_equal(decode(tile.load()).pixels, expected)


def test_large_images_are_cut_and_small_ones_kept_whole(make_images: Callable[..., Path]) -> None:
    folder = make_images("crops", 1, size_px=40)
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    Image.new("RGB", (40, 10)).save(folder / "thin.png")
    found = [(c.path, c.x, c.y) for c in listed(folder, tile_images=True, tile_px=16)]
    tiles = [("000.png", x, y) for y in (0, 16) for x in (0, 16)]
    assert found == [*tiles, ("small.png", None, None), ("thin.png", 0, 0)]


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_real_slides_are_read_region_by_region(real_data: Path, name: str) -> None:
    path = real_data / "wsi" / name
    tiles = listed(path, tile_px=200, stride_px=500)
    whole = tifffile.imread(path, key=0)
    for tile in [tiles[0], tiles[len(tiles) // 2], tiles[-1]]:
        expected = whole[tile.y : tile.y + 200, tile.x : tile.x + 200]
        np.testing.assert_array_equal(decode(tile.load()).pixels, expected)
    assert tiles[0].mpp == (0.499 if name.startswith("CMU") else None)
