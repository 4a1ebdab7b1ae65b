"""Optical density and stains against scikit-image, differences against scipy, and a shifted stain is noticed."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp
from skimage.color import hed_from_rgb, separate_stains

from hdtrain.evaluation.colour_statistics import STATISTICS, ColourComparer, mean_ks, stain_statistics, summary


def test_stains_are_those_of_scikit_image():
    """It divides by ln 10⁻⁶ where we take log₁₀, and knows no + 1."""
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    ours = stain_statistics(images)
    for image, row in zip(images, ours, strict=True):
        rgb = (image.astype(float) + 1) / 256
        theirs = separate_stains(rgb, hed_from_rgb)[..., :2] * -np.log(1e-6) / np.log(10)
        density = -np.log10(rgb)
        channels = np.concatenate([density, theirs], axis=2).reshape(-1, 5)
        expected = np.stack([channels.mean(0), channels.std(0)], axis=1).ravel()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_differences_agree_with_scipy_and_with_their_definition():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 2, 80), rng.normal(0, 1, 50)
    found = summary(ours, theirs)
    assert found.ks == pytest.approx(ks_2samp(ours, theirs).statistic)
    ties = rng.integers(0, 4, 60).astype(float), rng.integers(0, 5, 70).astype(float)
    assert summary(*ties).ks == pytest.approx(ks_2samp(*ties).statistic)
    pooled = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    assert found.effect_size == pytest.approx((ours.mean() - theirs.mean()) / pooled)
    assert found.quantiles == pytest.approx(np.quantile(ours, [0.05, 0.25, 0.5, 0.75, 0.95]))
    few = summary(ours[:4], theirs)
    assert (few.effect_size, few.ks, few.n) == (None, None, 4)


@pytest.mark.needs_data
def test_a_stronger_stain_is_noticed_and_told_apart_from_a_fresh_draw(real_data):
    paths = sorted((real_data / "kather2016_crc8" / "train" / "01_TUMOR").iterdir())[:120]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((48, 48))) for path in paths])

    def table(pixels):
        return {"labels": np.zeros(len(pixels), np.int64), "stain_statistics": stain_statistics(pixels)}

    comparer = ColourComparer(["tumour"], table(images[::2]))
    fresh = comparer.compare(table(images[1::2]))
    density = -np.log((images[1::2] + 1.0) / 256)
    darker = np.clip(256 * np.exp(-1.3 * density) - 1, 0, 255).round().astype(np.uint8)
    shifted = comparer.compare(table(darker))
    assert list(shifted) == ["all", "tumour"]
    assert list(shifted["tumour"]) == list(STATISTICS)
    assert shifted["tumour"]["haematoxylin mean"].effect_size > 0.8
    assert mean_ks(shifted) > 2 * mean_ks(fresh)
    assert abs(fresh["tumour"]["haematoxylin mean"].effect_size) < 0.4
