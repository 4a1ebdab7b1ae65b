"""The honest control: a classifier that sees nothing but which colours occur how often.

NCT-CRC-HE is separable to more than 80 % this way (arXiv 2409.11546), so an accuracy means little until it is held
against this one. Joint 8×8×8 RGB histogram, square roots (Hellinger), multinomial logistic regression; the L2 penalty
is chosen on the training images alone, by leaving out slides, or folds where slides are unknown.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8

BINS = 8
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the mean loss; candidates for λ in λ/2·‖W‖²."""
FOLDS = 5
MAX_ITERATIONS = 100


def colour_histograms(images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n 512"]:
    """Square roots of the shares of 8×8×8 RGB bins: rows of unit length."""
    bins = (images // (256 // BINS)).astype(np.int64)
    joint = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    offset = np.arange(len(images))[:, None] * BINS**3
    counts = np.bincount((joint.reshape(len(images), -1) + offset).ravel(), minlength=len(images) * BINS**3)
    shares = counts.reshape(len(images), BINS**3) / joint[0].size if len(images) else np.empty((0, BINS**3))
    return np.sqrt(shares).astype(np.float32)


@dataclass(frozen=True)
class LogisticRegression:
    """Multinomial, on features scaled by one common factor."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: float

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], num_classes: int, penalty: float
    ) -> "LogisticRegression":
        """Minimise mean cross-entropy + penalty/2·‖W‖² by L-BFGS, from zero: deterministic and convex."""
        scale = float(np.sqrt(features.shape[1]) / max(np.linalg.norm(features, axis=1).mean(), 1e-12))
        x, y = torch.from_numpy(np.asarray(features, np.float32)) * scale, torch.from_numpy(labels)
        weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(num_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return cls(weight.detach(), bias.detach(), scale)

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int64[np.ndarray, " n"]:
        """Most probable class."""
        x = torch.from_numpy(np.asarray(features, np.float32)) * self.scale
        return (x @ self.weight.T + self.bias).argmax(1).numpy()


def cross_validation_folds(groups: np.ndarray, labels: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], str]:
    """Fold of each image and how it came about: whole slides where there are two or more, else within class."""
    names = np.unique(groups)
    if len(names) >= 2 and (groups != "").all():
        return np.searchsorted(names, groups) % max(FOLDS, min(len(names), 2 * FOLDS)), "leave-slides-out"
    folds = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        folds[own] = np.arange(len(own)) % FOLDS
    return folds, f"{FOLDS}-fold"


def choose_penalty(
    features: Float[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    folds: Int64[np.ndarray, " n"],
    num_classes: int,
) -> float:
    """The penalty with the best cross-validated accuracy; the larger one wins a tie."""
    correct = dict.fromkeys(PENALTIES, 0)
    for fold in np.unique(folds):
        held_out = folds == fold
        for penalty in PENALTIES:
            model = LogisticRegression.fit(features[~held_out], labels[~held_out], num_classes, penalty)
            correct[penalty] += int((model.predict(features[held_out]) == labels[held_out]).sum())
    return max(PENALTIES, key=lambda penalty: (correct[penalty], penalty))
