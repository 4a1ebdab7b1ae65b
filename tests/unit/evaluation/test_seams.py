"""The seam figure says 1 of an image without seams, and more where there are steps at borders."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from hdtrain.errors import DataError
from hdtrain.evaluation.real_pixels import open_real
from hdtrain.evaluation.seams import compare_seams, measure_seams


def texture(height: int = 256, width: int = 320, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(128 + 30 * rng.standard_normal((height, width, 3)), 0, 255).astype(np.uint8)


def test_an_image_without_seams_has_a_ratio_of_one_within_its_interval():
    report = measure_seams(texture(), 16, 64, 4)
    for found in (report.windows, report.cells):
        assert found.low < 1 < found.high
        assert found.ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("period", "seen", "unseen"), [(64, "cells", "windows"), (16, "windows", None)])
def test_steps_at_borders_are_seen_where_they_are(period, seen, unseen):
    image = texture().astype(int)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    stepped = np.clip(image + (20 * ((y // period + x // period) % 2))[..., None], 0, 255).astype(np.uint8)
    report = measure_seams(stepped, 16, 64, 4)
    assert getattr(report, seen).low > 1.05
    if unseen:
        assert getattr(report, unseen).low < 1 < getattr(report, unseen).high


def test_smooth_borders_are_seen_too():
    image = texture()
    image[64::64] = image[63:-1:64]
    image[:, 64::64] = image[:, 63:-1:64]
    assert measure_seams(image, 16, 64, 4).cells.high < 0.2


def test_the_pattern_of_a_decoder_is_no_seam():
    image = texture().astype(int)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    latent = np.clip(image + (30 * ((y // 4 + x // 4) % 2))[..., None], 0, 255).astype(np.uint8)
    report = measure_seams(latent, 16, 64, 4)
    assert report.windows.ratio == pytest.approx(1, abs=0.05)
    lines = np.abs(np.diff(latent.mean(axis=2), axis=0)).mean(axis=1)
    assert lines[15::16].mean() > 1.1 * lines.mean(), "nothing there to be mistaken for a seam"


def test_the_blocks_of_a_jpeg_are_no_seam():
    y, x = np.mgrid[:512, :512]
    smooth = (128 + 100 * np.sin(x / 29) * np.sin(y / 31))[..., None].repeat(3, axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=20)
    image = np.asarray(Image.open(stream))
    lines = np.abs(np.diff(image.mean(axis=2), axis=0)).mean(axis=1)
    assert lines[15::16].mean() > 1.5 * lines.mean()
    found = measure_seams(image, 16, 64, 4).windows
    assert found.low < 1 < found.high


def test_the_figure_is_the_ratio_of_mean_differences():
    image = texture(128, 128)
    grey = image.astype(float) @ [0.299, 0.587, 0.114]
    down, right = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    lines = np.arange(1, 128)
    cell, other = lines % 64 == 0, (lines % 8 == 0) & (lines % 16 != 0)
    at = np.concatenate([down[cell].ravel(), right[:, cell].ravel()]).mean()
    elsewhere = np.concatenate([down[other].ravel(), right[:, other].ravel()]).mean()
    found = measure_seams(image, 16, 64, 4).cells
    assert (found.border, found.elsewhere) == pytest.approx((at, elsewhere))
    assert found.ratio == pytest.approx(at / elsewhere)


def test_one_cell_has_no_border_of_cells():
    report = measure_seams(texture(64, 64), 16, 64, 4)
    assert report.cells is None
    assert report.windows is not None


def test_a_real_image_is_measured_in_its_middle_at_the_same_lines(tmp_path):
    real = texture(300, 400, seed=1)
    Image.fromarray(real).save(tmp_path / "real.png")
    assert (open_real(tmp_path / "real.png", 256, 320)[0:256] == real[22:278, 40:360]).all()
    reports = compare_seams(texture(), tmp_path / "real.png", 16, 64, 4)
    assert reports["real"].windows == measure_seams(real[22:278, 40:360], 16, 64, 4).windows
    with pytest.raises(DataError, match="has 400 × 300 pixels, the painting 320 × 512"):
        open_real(tmp_path / "real.png", 512, 320)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="cannot be read as an image or a slide"):
        open_real(tmp_path / "text.png", 8, 8)


def test_a_slide_is_read_in_its_middle_too(tmp_path):
    pixels = texture(600, 700, seed=2)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "slide.tiff", pixels, **options)
    rows = open_real(tmp_path / "slide.tiff", 256, 320)
    assert rows.slide is not None
    assert (rows[10:90] == pixels[182:262, 190:510]).all()
