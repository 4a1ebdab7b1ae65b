"""A classifier's logits on labelled samples: loss, accuracy, macro F1, and how far its confidence can be trusted."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

CALIBRATION_BINS = 15
LARGEST_TEMPERATURE = 20.0
"""Temperatures are sought between its inverse and it: where nothing is wrong, colder is always better."""


@dataclass(frozen=True)
class Logits:
    """Of n labelled samples."""

    values: Float[Tensor, "n k"]
    """float64, on the CPU."""
    labels: Int[Tensor, " n"]

    @cached_property
    def predictions(self) -> Int[Tensor, " n"]:
        """The likeliest class."""
        return self.values.argmax(1)

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Which samples are classified rightly."""
        return self.predictions == self.labels

    @property
    def loss(self) -> float:
        """Mean cross-entropy, the negative log-likelihood in nats."""
        return float(cross_entropy(self.values, self.labels))

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.double().mean())

    @property
    def macro_f1(self) -> float:
        """Mean over classes of 2·TP / (true + predicted); a class that occurs in neither does not count."""
        k = self.values.shape[1]
        true, predicted, both = (
            torch.bincount(which, minlength=k).double()
            for which in (self.labels, self.predictions, self.labels[self.correct])
        )
        occurs = true + predicted > 0
        return float((2 * both / (true + predicted))[occurs].mean())

    def at(self, temperature: float) -> "Logits":
        """Divided by `temperature`."""
        return Logits(self.values / temperature, self.labels)

    def reliability(self) -> Float[Tensor, "3 15"]:
        """In equal bins of the confidence (that in the likeliest class): samples, mean confidence, accuracy."""
        confidence = self.values.softmax(1).amax(1)
        bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
        sums.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, self.correct.double()]))
        return torch.cat([sums[:1], sums[1:] / sums[0].clamp(min=1)])

    @property
    def calibration_error(self) -> float:
        """ECE (Guo et al. 2017, eq. 3): the bins' mean of |accuracy − confidence|, weighted by their samples."""
        samples, confidence, accuracy = self.reliability()
        return float((samples * (accuracy - confidence).abs()).sum() / samples.sum())


def fit_temperature(logits: Logits) -> float:
    """The temperature under which the samples are likeliest (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so a search over log T between the bounds finds it.
    """
    bound = math.log(LARGEST_TEMPERATURE)
    found = minimize_scalar(
        lambda log_t: logits.at(math.exp(log_t)).loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(found.x))


def at_bound(temperature: float) -> bool:
    """Whether the best temperature may lie outside of what was looked at."""
    return abs(math.log(temperature)) > 0.99 * math.log(LARGEST_TEMPERATURE)


def calibrate(logits: Logits) -> tuple[float, dict[str, float]]:
    """The temperature, and what it does: `nll` and `ece` before, `nll_calibrated` and `ece_calibrated` after.

    After is on the very samples that the temperature was fitted to: one number from all of them, so a little better
    than it will be elsewhere.
    """
    temperature = fit_temperature(logits)
    after = logits.at(temperature)
    return temperature, {
        "num_images": len(logits.labels),
        "nll": logits.loss,
        "ece": logits.calibration_error,
        "nll_calibrated": after.loss,
        "ece_calibrated": after.calibration_error,
    }
