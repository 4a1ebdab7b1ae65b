from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_helpers import BOTH, REAL, Pixels, damage, difference, noise, resolution, whole, write_slide

from sharding.images import UnusableError
from sharding.slides import SlideReaderName, open_slide
from sharding.slides.base import level_downsample
from sharding.slides.view import View


@pytest.mark.parametrize("name", REAL)
def test_both_readers_give_the_same_pixels_of_real_slides(real_data: Path, name: str) -> None:
    path = real_data / "wsi" / name
    slides = [open_slide(path, reader) for reader in BOTH]
    assert [(it.width, it.height, it.downsample) for it in slides[0].levels] == [
        (it.width, it.height, it.downsample) for it in slides[1].levels
    ]
    generator = np.random.default_rng(0)
    for _ in range(25):
        width, height = map(int, generator.integers(1, 400, 2))
        left = int(generator.integers(0, slides[0].levels[0].width - width))
        top = int(generator.integers(0, slides[0].levels[0].height - height))
        one, other = (slide.read(left, top, width, height) for slide in slides)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", REAL)
def test_a_region_of_a_real_level_is_that_part_of_the_whole(real_data: Path, name: str) -> None:
    path = real_data / "wsi" / name
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        expected = [level.asarray() for level in tiff.series[0].levels]
    assert len(slide.levels) == len(expected)
    for level, image in enumerate(expected):
        for left, top in ((0, 0), (300, 700), (image.shape[1] - 333, image.shape[0] - 222)):
            part = image[top : top + 222, left : left + 333]
            np.testing.assert_array_equal(slide.read(left, top, 333, 222, level), part)


def test_a_level_that_openslide_interpolates_is_not_cut_into_tiles(real_data: Path) -> None:
    """2221 of 4443 px: OpenSlide takes positions in whole pixels of the finest level, and blurs between them."""
    path = real_data / "wsi" / REAL[1]
    by_tifffile, by_openslide = (open_slide(path, reader) for reader in BOTH)
    assert [level.exact for level in by_openslide.levels] == [True, False]
    assert View.of(by_tifffile, 0.5, 0.25).source.level == 1
    assert View.of(by_openslide, 0.5, 0.25).source.level == 0
    blurred = difference(by_tifffile.read(900, 900, 300, 300, 1), by_openslide.read(900, 900, 300, 300, 1))
    assert 0 < blurred.mean() < 8


@pytest.mark.parametrize("reader", BOTH)
@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_every_level_of_a_pyramid_is_found_and_read(tmp_path: Path, reader: SlideReaderName, compression: str) -> None:
    levels = [noise(512, 768, 0), noise(256, 384, 1), noise(64, 96, 2)]
    path = write_slide(tmp_path / "p.tif", *levels, compression=compression)
    slide = open_slide(path, reader)
    assert [(level.downsample, level.exact) for level in slide.levels] == [(1, True), (2, True), (8, True)]
    tolerance = 0 if compression == "zlib" else 25  # JPEG of noise; another level would be 80 off
    for index, expected in enumerate(levels):
        found = slide.read(37, 21, 55, 40, index)
        assert difference(found, expected[21:61, 37:92]).mean() <= tolerance


def test_both_readers_decode_a_jpeg_pyramid_alike(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "p.tif", noise(512, 768), noise(128, 192, 1), compression="jpeg")
    one, other = (open_slide(path, reader) for reader in BOTH)
    for level in (0, 1):
        np.testing.assert_array_equal(whole(one, level), whole(other, level))


@pytest.mark.parametrize(
    "sides", [[(500, 700), (125, 175)], [(501, 703), (250, 351), (125, 175)], [(96, 96), (32, 32)]]
)
def test_levels_in_subifds_are_found(tmp_path: Path, sides: list[tuple[int, int]]) -> None:
    levels = [noise(height, width, seed) for seed, (height, width) in enumerate(sides)]
    slide = open_slide(write_slide(tmp_path / "p.tif", *levels, subifds=True))
    assert [level.downsample for level in slide.levels] == [round(sides[0][0] / height) for height, _ in sides]
    for index, expected in enumerate(levels):
        np.testing.assert_array_equal(whole(slide, index), expected)


@pytest.mark.parametrize("layout", [{"tile": (16, 32)}, {"tile": None, "rowsperstrip": 7}, {"tile": None}])
def test_a_region_of_a_made_slide_is_that_part_of_the_whole(tmp_path: Path, layout: dict[str, Any]) -> None:
    pixels = noise(60, 75)
    slide = open_slide(write_slide(tmp_path / "s.tif", pixels, **layout))
    for left, top, width, height in ((0, 0, 75, 60), (15, 6, 1, 1), (31, 13, 33, 40), (74, 59, 1, 1)):
        found = slide.read(left, top, width, height)
        np.testing.assert_array_equal(found, pixels[top : top + height, left : left + width])


def test_a_level_counts_only_if_its_size_fits() -> None:
    assert level_downsample((4443, 3567), (2221, 1783)) == 2
    assert level_downsample((4443, 3567), (278, 223)) == 16
    assert level_downsample((1001, 1001), (401, 401)) == pytest.approx(2.496, abs=1e-3)
    assert level_downsample((45056, 35840), (3072, 2560)) is None  # padded to whole segments
    assert level_downsample((2220, 2967), (387, 463)) is None  # the label


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"description": "Aperio|MPP = 0.4990|x"}, (0.499, 0.499)),
        ({"description": "Aperio|MPP = 0.4990|x", **resolution(3)}, (0.499, 0.499)),
        ({"description": "Aperio|MPP = 0|x"}, None),
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_the_resolution_is_read_where_it_is_plausible(
    tmp_path: Path, options: dict[str, Any], mpp: tuple[float, float] | None
) -> None:
    path = write_slide(tmp_path / "s.tif", noise(64, 64), **options)
    assert open_slide(path).mpp == (mpp and pytest.approx(mpp, rel=1e-6))
    if "description" not in options:
        assert open_slide(path, "openslide").mpp == (mpp and pytest.approx(mpp, rel=1e-6))


def test_the_resolution_of_ome_tiff_is_read(tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 260, "PhysicalSizeYUnit": "nm"}
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", tile=(32, 32), metadata={"axes": "YXS", **sizes})
    assert open_slide(path).mpp == pytest.approx((0.25, 0.26))


@pytest.mark.parametrize("reader", BOTH)
def test_what_the_scanner_left_out_is_white(tmp_path: Path, reader: SlideReaderName) -> None:
    pixels = noise(64, 192)
    tiles = [pixels[:, :64], None, pixels[:, 128:]]
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", iter(tiles), shape=pixels.shape, dtype="uint8", **options)
    expected = pixels.copy()
    expected[:, 64:128] = 255
    np.testing.assert_array_equal(whole(open_slide(tmp_path / "s.tif", reader)), expected)


def test_jpeg_2000_of_ycbcr_is_left_to_openslide(tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(noise(64, 64)).resize((128, 128)))
    ycbcr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    stream = imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="j2k", mct=False)
    path = write_slide(tmp_path / "s.svs", noise(128, 128), tile=(128, 128), description="Aperio Image Library v11")
    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {"compression": 33003, "photometric": "rgb", "description": "Aperio Image Library v1"}
        writer.write(iter([stream]), shape=(128, 128, 3), dtype="uint8", tile=(128, 128), metadata=None, **options)
    assert difference(whole(open_slide(path)), pixels).max() <= 3  # rounding to YCbCr and back
    with pytest.raises(UnusableError, match="YCbCr with compression 33003"):
        open_slide(path, "tifffile")


def write_odd(path: Path, array: Any, **options: Any) -> Path:
    tifffile.imwrite(path, array, **{"photometric": "rgb", "tile": (32, 32), "metadata": None, **options})
    return path


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda rgb: rgb[..., 0], {"photometric": "minisblack"}, "unsupported mode: uint8 of 1 samples"),
        (lambda rgb: rgb.astype(np.uint16) * 257, {}, "unsupported mode: uint16 of 3 samples"),
        (lambda rgb: np.moveaxis(rgb, -1, 0).copy(), {"planarconfig": "separate"}, "one plane a channel"),
    ],
)
def test_what_tifffile_is_not_to_read_is_read_by_openslide(
    tmp_path: Path, change: Callable[[Pixels], Any], options: dict[str, Any], reason: str
) -> None:
    pixels = noise(64, 64)
    path = write_odd(tmp_path / "s.tif", change(pixels), **options)
    with pytest.raises(UnusableError, match=reason):
        open_slide(path, "tifffile")
    expected = pixels[..., [0, 0, 0]] if options.get("photometric") == "minisblack" else pixels
    np.testing.assert_array_equal(whole(open_slide(path)), expected)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([noise(64, 64), noise(64, 64, 1)[..., 0]])
    path = write_odd(tmp_path / "s.tif", rgba, extrasamples=["unassalpha"])
    opacity = rgba[..., 3:] / 255
    assert np.abs(whole(open_slide(path)) - (opacity * rgba[..., :3] + (1 - opacity) * 255)).max() <= 2


def test_a_stack_of_planes_is_refused(tmp_path: Path) -> None:
    path = write_odd(tmp_path / "s.tif", np.stack([noise(64, 64), noise(64, 64, 1)]))
    with pytest.raises(UnusableError, match="several planes"):
        open_slide(path)


def test_one_huge_strip_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    tile = imagecodecs.zlib_encode(np.zeros(16, np.uint8))
    options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "metadata": None, "rowsperstrip": 20_000}
    tifffile.imwrite(tmp_path / "s.tif", iter([tile]), shape=(20_000, 20_000, 3), dtype="uint8", **options)
    with pytest.raises(UnusableError, match="not cut into segments: 20000 × 20000 px in one piece"):
        open_slide(tmp_path / "s.tif", "tifffile")


@pytest.mark.parametrize("reader", BOTH)
def test_a_damaged_segment_spoils_its_regions_and_no_others_in_any_thread(
    tmp_path: Path, reader: SlideReaderName
) -> None:
    pixels = noise(256, 256)
    path = damage(write_slide(tmp_path / "s.tif", pixels, compression="jpeg"), [5, 10])
    sound = whole(open_slide(write_slide(tmp_path / "t.tif", pixels, compression="jpeg"), reader))
    slide = open_slide(path, reader)

    def read(index: int) -> Pixels | str:
        y, x = divmod(index % 16, 4)
        try:
            return slide.read(x * 64, y * 64, 64, 64)
        except UnusableError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(read, range(64))):
            y, x = divmod(index % 16, 4)
            if index % 16 in (5, 10):
                assert found == "truncated or damaged"
            else:
                np.testing.assert_array_equal(found, sound[y * 64 : y * 64 + 64, x * 64 : x * 64 + 64])


def test_half_a_jpeg_is_not_filled_with_grey(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", noise(64, 64), compression="jpeg")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        end = page.dataoffsets[0] + page.databytecounts[0]
    half = page.databytecounts[0] // 2
    path.write_bytes(data[: end - half] + bytes(half) + data[end:])
    with pytest.raises(UnusableError, match="truncated or damaged"):
        whole(open_slide(path))
