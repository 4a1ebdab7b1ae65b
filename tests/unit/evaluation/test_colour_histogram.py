"""The control that sees colours alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from hdtrain.evaluation.colour_histogram import (
    LogisticRegression,
    choose_penalty,
    colour_histograms,
    cross_validation_folds,
)


def test_histograms_count_joint_colours_and_not_places():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    ours = colour_histograms(images)
    for image, row in zip(images, ours, strict=True):
        expected, _ = np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)
        np.testing.assert_allclose(row**2, expected.ravel() / 63, atol=1e-6)
    np.testing.assert_array_equal(ours, colour_histograms(images[:, ::-1, ::-1]))


def test_the_regression_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    model = LogisticRegression.fit(x, y, 3, 0.01)
    weight = model.weight.clone().requires_grad_()
    logits = torch.from_numpy(x) * model.scale @ weight.T + model.bias
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3


def test_slides_stay_whole_in_cross_validation():
    groups = np.array([f"s{i % 4}" for i in range(40)])
    folds, how = cross_validation_folds(groups, np.zeros(40, np.int64))
    assert how == "leave-slides-out"
    assert all(len(set(folds[groups == g])) == 1 for g in np.unique(groups))
    assert len(set(folds)) == 4
    unknown, how = cross_validation_folds(np.full(40, ""), np.arange(40) % 2)
    assert how == "5-fold"
    assert all(set(unknown[np.arange(40) % 2 == k]) == set(range(5)) for k in (0, 1))


@pytest.mark.needs_data
def test_colours_alone_separate_real_tissue(real_data):
    """20 training images a class suffice for far more than chance (12.5 %) on other slides."""
    root = real_data / "kather2016_crc8"

    def read(split, count):
        folders = sorted(p for p in (root / split).iterdir() if p.is_dir())
        paths = [(k, p) for k, f in enumerate(folders) for p in sorted(f.iterdir())[:: 1600 // 8 // count][:count]]
        return np.stack([np.asarray(Image.open(p)) for _, p in paths]), np.array([k for k, _ in paths])

    (train, y), (test, z) = read("train", 20), read("test", 16)
    x = colour_histograms(train)
    folds, _ = cross_validation_folds(np.full(len(y), ""), y)
    model = LogisticRegression.fit(x, y, 8, choose_penalty(x, y, folds, 8))
    assert (model.predict(colour_histograms(test)) == z).mean() > 0.45
