"""Figures of statistics: each is what it says, of all images and by class."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from hdtrain.evaluation.compare import Figures
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.set_statistics import Gaussian, Sample, SetStatistics

DIM = 6


def name(kind: str) -> str:
    return f"{kind}-x"


def statistics(seed: int, counts: dict[str, int]) -> SetStatistics:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    features = (rng.normal(size=(len(labels), DIM)) + labels[:, None] + 0.1 * seed).astype(np.float32)
    of_class = {
        each: Moments.of(features[labels == label]) for label, each in enumerate(counts) if counts[each] >= 2 * DIM
    }
    return SetStatistics(Moments.of(features), features, labels, list(counts), counts, of_class, seed=0)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it stands."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(first @ second)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root)


def test_every_figure_of_a_large_set_is_there_and_the_limit_lies_below_the_distance():
    real, fake = statistics(0, {"a": 300, "b": 300}), statistics(1, {"a": 300, "b": 300})
    figures = Figures(name, 100, seed=3)
    found = figures.whole(real.whole(), fake.whole())
    assert list(found) == ["FD-x", "FDinf-x", "KD-x", "precision", "recall", "density", "coverage"]
    assert found["FD-x"].value == pytest.approx(frechet(fake.features, real.features), rel=1e-6)
    assert 0 < found["FDinf-x"].value < found["FD-x"].value
    assert found["KD-x"].interval[0] < found["KD-x"].value < found["KD-x"].interval[1]
    assert figures.left_out == []


def test_classes_are_matched_by_name_whatever_their_order():
    real, fake = statistics(0, {"a": 40, "b": 50}), statistics(1, {"b": 30, "a": 20})
    found = Figures(name, 10, seed=0).by_class(real, fake)
    assert list(found) == ["a", "b"]
    expected = frechet(fake.features[fake.labels == 1], real.features[real.labels == 0])
    assert found["a"]["FD-x"].value == pytest.approx(expected, rel=1e-6)
    assert (found["a"]["FD-x"].n, found["b"]["FD-x"].n) == (20, 30)


def test_a_class_with_too_few_images_has_the_figures_that_it_can_have():
    real, fake = statistics(0, {"a": 40, "b": 40, "c": 40}), statistics(1, {"a": 40, "b": 8, "c": 0})
    figures = Figures(name, 10, seed=0)
    found = figures.by_class(real, fake)
    assert {each: len(metrics) for each, metrics in found.items()} == {"a": 7, "b": 4}
    assert figures.left_out == [
        "FD-x by class needs 12 images of the class in each set: left out for 2 of 3 classes (the smallest has 0)",
        "FDinf-x by class needs 12 images of the class in each set: left out for 2 of 3 classes (the smallest has 0)",
        "KD-x by class needs 10 images of the class in each set: left out for 2 of 3 classes (the smallest has 0)",
        "precision, recall, density, coverage by class needs 6 images of the class in each set: left out for 1 of 3 "
        "classes (the smallest has 0)",
    ]


def test_mean_and_covariance_alone_give_the_distance_of_the_sets_that_they_are_of():
    real, fake = statistics(0, {"a": 80}), statistics(1, {"a": 90})
    given = Gaussian(1, real.moments.mean, real.moments.covariance, real.moments.mean, real.moments.covariance)
    alone = Sample(None, given, None)
    expected = Figures(name, 10, 0).whole(real.whole(), fake.whole())["FD-x"].value
    for pair in ((alone, fake.whole()), (fake.whole(), alone)):
        found = Figures(name, 10, 0).whole(*pair)
        assert list(found) == ["FD-x"]
        assert found["FD-x"].value == pytest.approx(expected, rel=1e-9)
        assert "unknown number" in found["FD-x"].method or found["FD-x"].n == 90
