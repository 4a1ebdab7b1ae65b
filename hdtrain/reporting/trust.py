"""Can one trust the images? Three checks with named thresholds; all three must be measured and passed."""

import math
from dataclasses import dataclass
from typing import Literal

from hdtrain.formats.results import CANDIDATES, YARDSTICK, ImageSetResult, Metric, Results

MAX_MEMORISED_SHARE = 0.05
"""Synthetic images that are relatively nearer to one training image, in features or in pixels, than 99.5 % of those are
to another one. Each space flags about 0.5 % of new real images: 1 % for both."""
MIN_AGREEMENT_OVER_CHANCE = 2.0
"""The lower bound of label agreement must exceed chance this many times …"""
MIN_PRECISION = 0.5
"""Share of synthetic images that lie within the real images' neighbourhoods (Kynkäänniemi et al. 2019)."""

TrustOutcome = Literal["trustworthy", "not trustworthy", "not shown to be trustworthy"]


@dataclass(frozen=True)
class Check:
    """One rule on one image set. `passed` is None where the figure was not measured."""

    name: Literal["label agreement", "memorised share", "precision"]
    metric: Metric | None
    judged: float | None
    """The number that was held against the threshold."""
    threshold: float
    passed: bool | None


@dataclass(frozen=True)
class Trust:
    """All checks of one image set."""

    image_set: str
    checks: list[Check]

    @property
    def outcome(self) -> TrustOutcome:
        """One failed check is enough to say no; one missing figure is enough not to say yes."""
        states = [check.passed for check in self.checks]
        if False in states:
            return "not trustworthy"
        return "not shown to be trustworthy" if None in states else "trustworthy"


def agreement_threshold(num_classes: int) -> float:
    """Twice chance; with two or three classes, where that is (nearly) 1, half-way between chance and 1."""
    chance = 1 / num_classes
    return min(MIN_AGREEMENT_OVER_CHANCE * chance, (1 + chance) / 2)


def judge_images(results: Results) -> list[Trust]:
    """Every set of synthetic images, in the file's order."""
    threshold = agreement_threshold(len(results.classes))
    return [_judge(name, image_set, threshold) for name, image_set in results.image_sets.items() if name != YARDSTICK]


def judge_yardstick(results: Results) -> Trust | None:
    """What the same rules say about the real test images: a rule that they fail says little about synthetic ones."""
    image_set = results.image_sets.get(YARDSTICK)
    return _judge(YARDSTICK, image_set, agreement_threshold(len(results.classes))) if image_set else None


def used_sets(results: Results) -> list[str]:
    """The sets that the answer is about: those of the arms, or the pool where there is nothing else."""
    synthetic = [name for name in results.image_sets if name != YARDSTICK]
    return [name for name in synthetic if name != CANDIDATES] or synthetic


def _judge(name: str, image_set: ImageSetResult, agreement: float) -> Trust:
    metrics = {key: metric for key, metric in image_set.metrics.items() if math.isfinite(metric.value)}
    label, memorised, precision = (metrics.get(key) for key in ("label_agreement", "memorised_share", "precision"))
    bound = label.interval[0] if label and label.interval else None
    checks = [
        Check("label agreement", label, bound, agreement, None if bound is None else bound > agreement),
        Check(
            "memorised share",
            memorised,
            memorised.value if memorised else None,
            MAX_MEMORISED_SHARE,
            memorised.value <= MAX_MEMORISED_SHARE if memorised else None,
        ),
        Check(
            "precision",
            precision,
            precision.value if precision else None,
            MIN_PRECISION,
            precision.value >= MIN_PRECISION if precision else None,
        ),
    ]
    return Trust(name, checks)
