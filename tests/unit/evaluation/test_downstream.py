"""Figures of a classifier against torchmetrics, and what their intervals promise."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
    multiclass_specificity,
)

from hdtrain.evaluation.downstream import CLASS_METRICS, METRICS, accuracy, calibration_error, confusion_matrix
from hdtrain.evaluation.statistics import ArmBootstrap, SplitBootstrap, interval_of, two_sided_p, wilson_interval

K = 5
THEIRS = {
    "accuracy": (multiclass_accuracy, "micro"),
    "macro_f1": (multiclass_f1_score, "macro"),
    "weighted_f1": (multiclass_f1_score, "weighted"),
    "macro_sensitivity": (multiclass_recall, "macro"),
    "weighted_sensitivity": (multiclass_recall, "weighted"),
    "specificity": (multiclass_specificity, "macro"),
}


def _labels(n=300, seed=0, skill=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    predicted = np.where(rng.random(n) < skill, labels, rng.integers(0, K, n))
    return labels, predicted


@pytest.mark.parametrize("name", THEIRS)
def test_every_metric_agrees_with_torchmetrics(name):
    labels, predicted = _labels()
    function, average = THEIRS[name]
    expected = function(torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=K, average=average)
    assert METRICS[name](confusion_matrix(labels, predicted, K)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [("sensitivity", multiclass_recall), ("specificity", multiclass_specificity), ("f1", multiclass_f1_score)],
)
def test_every_class_agrees_with_torchmetrics(name, function):
    labels, predicted = _labels()
    expected = function(torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=K, average="none")
    np.testing.assert_allclose(CLASS_METRICS[name](confusion_matrix(labels, predicted, K)), expected, rtol=1e-6)


def test_calibration_error_agrees_with_torchmetrics():
    labels, _ = _labels(1000)
    logits = np.random.default_rng(1).normal(0, 2, (1000, K)) + 2 * np.eye(K)[labels]
    probabilities = torch.from_numpy(logits).softmax(1)
    expected = multiclass_calibration_error(
        probabilities, torch.from_numpy(labels), num_classes=K, n_bins=15, norm="l1"
    )
    assert calibration_error(labels, probabilities.numpy()) == pytest.approx(float(expected), rel=1e-5)


def test_a_class_that_never_occurs_does_not_count():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert METRICS["macro_sensitivity"](confusion) == pytest.approx((0.75 + 1) / 2)


def test_wilson_agrees_with_scipy():
    for successes, n in ((0, 10), (7, 10), (469, 469)):
        expected = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def _bootstrap(labels, groups=None, resamples=1000):
    groups = np.full(len(labels), "") if groups is None else groups
    return SplitBootstrap(labels, groups, K, resamples, seed=0)


def test_the_interval_has_the_width_that_theory_gives():
    labels, predicted = _labels(1000)
    low, high = interval_of(ArmBootstrap(_bootstrap(labels), predicted[None], "a").resampled(accuracy))
    share = (labels == predicted).mean()
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 1000), rel=0.15)


def test_seeds_that_differ_widen_the_interval():
    labels, predicted = _labels(1000)
    worse = _labels(1000, skill=0.3)[1]
    one = interval_of(ArmBootstrap(_bootstrap(labels), predicted[None], "a").resampled(accuracy))
    two = interval_of(ArmBootstrap(_bootstrap(labels), np.stack([predicted, worse]), "a").resampled(accuracy))
    assert two[1] - two[0] > 2 * (one[1] - one[0])


def test_whole_slides_are_resampled_when_there_are_enough_of_them():
    """Slides on which everything or nothing is right: images are no independent evidence."""
    labels = np.zeros(400, np.int64)
    slides = np.array([f"slide{i // 20:02d}" for i in range(400)])
    predicted = (np.arange(400) // 20) % 2
    by_slide, by_image = _bootstrap(labels, slides), _bootstrap(labels)
    assert by_slide.clustered
    assert "slide" in by_slide.method
    widths = [
        np.ptp(interval_of(ArmBootstrap(b, predicted[None], "a").resampled(accuracy))) for b in (by_slide, by_image)
    ]
    assert widths[0] > 3 * widths[1]
    assert not _bootstrap(labels, np.array(["a", "b"] * 200)).clustered


def test_pairing_finds_a_small_gain_on_the_same_images_and_no_gain_in_none():
    labels, predicted = _labels(1000)
    better = np.where(np.arange(1000) % 40 == 0, labels, predicted)
    test = _bootstrap(labels)
    ours, theirs = (ArmBootstrap(test, p[None], a).resampled(accuracy) for a, p in (("a", better), ("b", predicted)))
    assert interval_of(ours - theirs)[0] > 0
    assert two_sided_p(ours - theirs) < 0.01
    assert two_sided_p(theirs - theirs) == 1
