import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slide_helpers import BOTH, REAL, Pixels, damage, difference, noise, resolution, whole, write_slide

from sharding.images import UnusableError
from sharding.slides import open_slide
from sharding.slides.base import Reduced
from sharding.slides.tissue import TissueMask, overview
from sharding.slides.view import View
from sharding.tiles import is_tissue


def resized(pixels: Pixels, view: View, scale: tuple[float, float]) -> Pixels:
    """A whole level at the view's size by Pillow, first across, then down."""
    image, lanczos = Image.fromarray(pixels), Image.Resampling.LANCZOS
    image = image.resize((view.width, image.height), lanczos, (0, 0, view.width * scale[0], image.height))
    return np.asarray(image.resize((view.width, view.height), lanczos, (0, 0, view.width, view.height * scale[1])))


# Resolution


@pytest.mark.parametrize(
    ("target", "level", "mpp"),
    [
        (None, 0, 0.25),
        (0.25, 0, 0.25),
        (0.2476, 0, 0.25),  # within 1 %: as it is
        (0.24, 0, 0.24),  # up to 5 % finer than the slide
        (0.4, 0, 0.4),
        (0.5, 1, 0.5),
        (0.996, 2, 1.0),
        (0.97, 1, 0.97),
        (3.0, 2, 3.0),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_taken(
    tmp_path: Path, target: float | None, level: int, mpp: float
) -> None:
    levels = [noise(512, 512), noise(256, 256, 1), noise(128, 128, 2)]
    slide = open_slide(write_slide(tmp_path / "s.tif", *levels, **resolution(0.25)))
    view = View.of(slide, target)
    assert view.source.level == level
    assert view.mpp == pytest.approx(mpp)
    side = 512 * 0.25 / (mpp if target else 0.25)
    assert (view.width, view.height) == (math.floor(side + 1e-6), math.floor(side + 1e-6))
    if mpp in (0.25, 0.5, 1.0):
        np.testing.assert_array_equal(view.read(7, 9, 50), levels[level][9:59, 7:57])


def test_a_slide_is_not_enlarged_and_no_resolution_is_guessed(tmp_path: Path) -> None:
    known = open_slide(write_slide(tmp_path / "s.tif", noise(64, 64), **resolution(0.5)))
    with pytest.raises(UnusableError, match=r"coarser than target_mpp: 0\.5 µm a pixel, wanted 0\.25"):
        View.of(known, 0.25)
    assert View.of(known, 1.0, default_mpp=0.1).step == pytest.approx((2, 2))  # what the slide says comes first
    unknown = open_slide(write_slide(tmp_path / "t.tif", noise(64, 64)))
    with pytest.raises(UnusableError, match="resolution unknown"):
        View.of(unknown, 0.5)
    assert View.of(unknown, 0.5, default_mpp=0.25).step == pytest.approx((2, 2))
    assert View.of(unknown).mpp is None


@pytest.mark.parametrize("target", [0.483, 0.75, 1.7, 3.9])
def test_resampled_tiles_are_pieces_of_the_whole_slide_resized(tmp_path: Path, target: float) -> None:
    pixels = noise(700, 900)
    view = View.of(open_slide(write_slide(tmp_path / "s.tif", pixels, **resolution(0.5))), target)
    expected = resized(pixels, view, (target / 0.5, target / 0.5))
    tile_px = 40
    for left in (0, 13, view.width - tile_px):
        for top in (0, 29, view.height - tile_px):
            part = expected[top : top + tile_px, left : left + tile_px]
            assert difference(view.read(left, top, tile_px), part).max() <= 1


def test_a_much_coarser_tile_is_near_to_what_resizing_at_once_gives(real_data: Path) -> None:
    slide = open_slide(real_data / "wsi" / REAL[0])
    view = View.of(slide, 0.499 * 20)
    assert view.source.factor == 5  # what is read at once stays bounded
    expected = resized(whole(slide), view, (20, 20))
    found = view.read(10, 20, 90)
    off = difference(found, expected[20:110, 10:100])
    assert off.mean() < 0.6
    assert off.max() < 12
    shifted = difference(found, expected[20:110, 11:101])
    assert shifted.mean() > 5


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    pixels = noise(400, 200)
    options = {"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm wide, 0.25 µm high
    view = View.of(open_slide(write_slide(tmp_path / "s.tif", pixels, **options)), 0.5)
    assert (view.width, view.height) == (200, 200)
    np.testing.assert_array_equal(view.read(50, 60, 100), resized(pixels, view, (1, 2))[60:160, 50:150])


def test_area_averages_are_means_also_at_the_edge(tmp_path: Path) -> None:
    pixels = noise(103, 75)
    slide = open_slide(write_slide(tmp_path / "s.tif", pixels))
    reduced = Reduced(slide, 0, 4)
    assert (reduced.width, reduced.height) == (19, 26)
    expected = np.array(
        [[pixels[y : y + 4, x : x + 4].mean((0, 1)) for x in range(0, 75, 4)] for y in range(0, 103, 4)]
    )
    assert np.abs(reduced.read(0, 0, 19, 26) - expected).max() <= 1
    np.testing.assert_array_equal(reduced.read(3, 5, 16, 21), reduced.read(0, 0, 19, 26)[5:, 3:])


# Tissue


def glass_with_tissue(height: int, width: int) -> Pixels:
    pixels = np.full((height, width, 3), 242, np.uint8)
    y, x = np.mgrid[:height, :width]
    inside = ((y - height * 0.4) ** 2 + (x - width * 0.55) ** 2) < (min(height, width) * 0.3) ** 2
    pixels[inside] = noise(height, width)[inside] // 3 + np.array([140, 60, 120], np.uint8)
    return pixels


@pytest.mark.parametrize(
    ("downsamples", "side", "level", "factor"),
    [
        ((1, 4, 16), 256, 2, 1),
        ((1, 8, 64), 256, 2, 1),
        ((1, 4), 256, 1, 4),
        ((1,), 256, 0, 16),
        ((1, 2, 64), 64, 1, 4),  # a small tile is not judged by one pixel
        ((1, 2), 8, 0, 1),
    ],
)
def test_the_overview_comes_from_the_pyramid_where_it_can(
    tmp_path: Path, downsamples: tuple[int, ...], side: int, level: int, factor: int
) -> None:
    levels = [noise(1024 // it, 1024 // it) for it in downsamples]
    found = overview(open_slide(write_slide(tmp_path / "s.tif", *levels)), side)
    assert (found.level, found.factor) == (level, factor)


@pytest.mark.parametrize("size", [(700, 900), (2100, 530)])
def test_the_mask_is_the_rule_on_the_averaged_slide(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = glass_with_tissue(*size)
    mask = TissueMask.of(open_slide(write_slide(tmp_path / "s.tif", pixels)), 256)
    small = Image.fromarray(pixels).reduce(16)
    np.testing.assert_array_equal(mask.mask, is_tissue(np.asarray(small)))
    assert 0.05 < mask.mask.mean() < 0.5


def test_the_mask_of_a_real_slide_is_the_same_by_both_readers(real_data: Path) -> None:
    masks = [TissueMask.of(open_slide(real_data / "wsi" / REAL[0], reader), 256).mask for reader in BOTH]
    np.testing.assert_array_equal(*masks)
    assert 0.2 < masks[0].mean() < 0.6


@given(st.data())
def test_a_tiles_share_of_tissue_is_counted_by_area(data: st.DataObject) -> None:
    height, width, downsample = (data.draw(st.integers(2, 9)) for _ in range(3))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    fine = np.kron(mask, np.ones((downsample, downsample)))
    side = data.draw(st.integers(1, min(height, width) * downsample))
    top = data.draw(st.integers(0, height * downsample - side))
    lefts = np.arange(0, width * downsample - side + 1)
    shares = TissueMask(mask, downsample).shares(top, top + side, lefts, side)
    expected = [fine[top : top + side, left : left + side].mean() for left in lefts]
    np.testing.assert_allclose(shares, expected, atol=1e-12)


def test_what_cannot_be_read_counts_as_tissue_and_the_rest_is_still_judged(tmp_path: Path) -> None:
    white = np.full((2048, 2048, 3), 245, np.uint8)
    path = write_slide(tmp_path / "s.tif", white, tile=(256, 256))
    mask = TissueMask.of(open_slide(damage(path, [9])), 256).mask
    assert mask[16:32, 16:32].all()
    mask[16:32, 16:32] = False
    assert not mask.any()


def test_many_threads_see_the_same_slide(real_data: Path) -> None:
    view = View.of(open_slide(real_data / "wsi" / REAL[0]), 1.3)
    places = [(left, top) for top in range(0, view.height - 64, 200) for left in range(0, view.width - 64, 100)]
    read: Callable[[tuple[int, int]], Pixels] = lambda place: view.read(*place, 64)  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        for place, found in zip(places, pool.map(read, places), strict=True):
            np.testing.assert_array_equal(found, read(place))
