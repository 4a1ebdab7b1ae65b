"""Figures of a classifier: functions of its confusion matrix, vectorised over leading axes, and its calibration.

A class that occurs neither among the true nor among the predicted labels does not count in a macro average.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Int64

Confusion = np.ndarray
"""(…, k, k): rows are true classes, columns predicted ones."""


def confusion_matrix(
    labels: Int64[np.ndarray, " n"], predictions: Int64[np.ndarray, " n"], num_classes: int
) -> Int64[np.ndarray, "k k"]:
    """Counts."""
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(confusion: Confusion) -> np.ndarray:
    """Share of correct predictions."""
    return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1)))


def class_sensitivity(confusion: Confusion) -> Float[np.ndarray, "... k"]:
    """Recall a class; 0 where the class does not occur."""
    correct, true, _ = _counts(confusion)
    return _ratio(correct, true)


def class_f1(confusion: Confusion) -> Float[np.ndarray, "... k"]:
    """2·TP / (true + predicted) a class."""
    correct, true, predicted = _counts(confusion)
    return _ratio(2 * correct, true + predicted)


def class_specificity(confusion: Confusion) -> Float[np.ndarray, "... k"]:
    """One against the rest: TN / (TN + FP) a class."""
    correct, true, predicted = _counts(confusion)
    total = confusion.sum((-2, -1))[..., None]
    return _ratio(total - true - predicted + correct, total - true)


def _counts(confusion: Confusion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    return correct, confusion.sum(-1), confusion.sum(-2)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0)


def _macro(per_class: Callable[[Confusion], np.ndarray]) -> Callable[[Confusion], np.ndarray]:
    def average(confusion: Confusion) -> np.ndarray:
        _, true, predicted = _counts(confusion)
        occurs = true + predicted > 0
        return np.asarray((per_class(confusion) * occurs).sum(-1) / occurs.sum(-1))

    return average


def _weighted(per_class: Callable[[Confusion], np.ndarray]) -> Callable[[Confusion], np.ndarray]:
    def average(confusion: Confusion) -> np.ndarray:
        true = confusion.sum(-1)
        return np.asarray((per_class(confusion) * true).sum(-1) / true.sum(-1))

    return average


METRICS: dict[str, Callable[[Confusion], np.ndarray]] = {
    "accuracy": accuracy,
    "macro_f1": _macro(class_f1),
    "weighted_f1": _weighted(class_f1),
    "macro_sensitivity": _macro(class_sensitivity),
    "weighted_sensitivity": _weighted(class_sensitivity),
    "specificity": _macro(class_specificity),
}
"""Each maps (…, k, k) to (…)."""

CLASS_METRICS: dict[str, Callable[[Confusion], np.ndarray]] = {
    "sensitivity": class_sensitivity,
    "specificity": class_specificity,
    "f1": class_f1,
}
"""Each maps (…, k, k) to (…, k)."""

CALIBRATION_BINS = 15


def calibration_error(labels: Int64[np.ndarray, " n"], probabilities: Float32[np.ndarray, "n k"]) -> float:
    """Expected calibration error: |accuracy − confidence| over equal bins of the top class's confidence, weighted.

    Guo et al. 2017.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))
