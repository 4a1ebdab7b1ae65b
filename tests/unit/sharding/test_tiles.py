import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sharding.images import UnusableError
from sharding.inputs import Broken, ByteRange, Held
from sharding.tiles import ImageRaster, PixelCache, Tile, grid, is_tissue, tissue_share


def test_grid_has_every_tile_that_lies_inside_and_no_other() -> None:
    assert list(grid(25, 16, 8, 8)) == [(0, 0), (8, 0), (16, 0), (0, 8), (8, 8), (16, 8)]
    assert list(grid(16, 8, 8, 4)) == [(0, 0), (4, 0), (8, 0)]
    assert list(grid(7, 100, 8, 8)) == []


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_tiles_lie_inside_and_no_position_of_the_stride_is_left_out(
    width: int, height: int, tile_px: int, stride_px: int
) -> None:
    found = list(grid(width, height, tile_px, stride_px))
    wanted = {
        (x, y)
        for x in range(0, width, stride_px)
        for y in range(0, height, stride_px)
        if x + tile_px <= width and y + tile_px <= height
    }
    assert set(found) == wanted
    assert found == sorted(found, key=lambda place: (place[1], place[0]))


def test_tissue_is_coloured_and_not_black() -> None:
    pixels = np.full((10, 10, 3), 240, np.uint8)
    assert tissue_share(pixels) == 0
    pixels[:3] = (200, 120, 180)
    assert tissue_share(pixels) == pytest.approx(0.3)
    pixels[3:6] = (20, 0, 10)  # saturated, but black: padding with compression noise
    assert tissue_share(pixels) == pytest.approx(0.3)
    pixels[6:] = (200, 187, 187)  # saturation 0.065
    assert tissue_share(pixels) == pytest.approx(0.3)


def test_tissue_is_by_pixel_what_the_colour_model_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    pixels[:30] = 200 + pixels[:30] // 16  # hardly any colour: about the threshold
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float64)
    clear = np.abs(hsv[..., 1] / 255 - 0.07) > 1 / 255  # Pillow rounds saturation down to whole numbers
    wanted = (hsv[..., 1] / 255 > 0.07) & (hsv[..., 2] > 25)
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(is_tissue(pixels)[clear], wanted[clear])


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


def test_the_cache_lets_the_longest_unused_go_first() -> None:
    cache, made = PixelCache(1000), []

    def ask(key: str) -> None:
        cache.get(key, lambda: (made.append(key), np.zeros(400, np.uint8))[1])

    for key in "abacab":
        ask(key)
    assert made == ["a", "b", "c", "b"]


def test_a_crop_is_tiled_out_of_an_archive_as_well_as_from_memory(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    data = stream.getvalue()
    archive = tmp_path / "some.tar"
    archive.write_bytes(b"before" + data + b"after")
    for content in (ByteRange(archive, 6, len(data)), Held(data), Held(pixels)):
        raster = ImageRaster(content)
        for left, top in grid(50, 40, 16, 12):
            tile = Tile(raster, left, top, 16).load()
            np.testing.assert_array_equal(tile, pixels[top : top + 16, left : left + 16])
            assert tile.flags.c_contiguous


def test_two_crops_of_the_same_name_are_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 20), colour).save(path)
        tile = Tile(ImageRaster(ByteRange(path, 0, path.stat().st_size)), 0, 0, 8).load()
        assert (tile[0, 0] == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all()


def test_a_crop_that_cannot_be_cut_says_why() -> None:
    with pytest.raises(UnusableError, match="lost"):
        Tile(ImageRaster(Broken("lost")), 0, 0, 8).load()
    with pytest.raises(UnusableError, match="not of the size that its header says"):
        Tile(ImageRaster(Held(np.zeros((10, 10, 3), np.uint8))), 4, 0, 8).load()
