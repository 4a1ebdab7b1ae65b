"""Each synthetic arm against the baseline and against conventional augmentation: better, worse, or no difference seen.

No arm is singled out as the best one, since that would be selection on the test set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from hdtrain.formats.results import ArmResult, Results

ALPHA = 0.05
"""Level of every decision, after Holm's correction over the synthetic arms."""
AUGMENTATION = "augment"
"""An arm without synthetic images whose name holds this word is the conventional-augmentation control."""
GAIN = "accuracy_gain"
_Z95 = NormalDist().inv_cdf(0.975)

Outcome = Literal["better", "worse", "no difference seen", "not measured"]


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy between a synthetic arm and a reference arm, shares in −1..1."""

    arm: str
    reference: str
    gain: float
    interval: tuple[float, float] | None
    p: float | None
    adjusted_p: float | None = None
    """After Holm (1979), over the pairs that were compared together."""
    outcome: Outcome = "not measured"
    paired: bool = True
    """False: derived from both arms' gains over the baseline as if they were independent, which is wide on purpose."""

    @property
    def lost_by_correction(self) -> bool:
        """Its own interval excludes 0, but the corrected p does not let it count."""
        return self.outcome == "no difference seen" and excludes_zero(self.interval)


def excludes_zero(interval: tuple[float, float] | None) -> bool:
    """True where the whole interval lies on one side of 0."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979, Scand. J. Statist. 6:65)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def synthetic_arms(results: Results) -> list[str]:
    """Arms that were given synthetic images, in the file's order."""
    return [name for name, arm in results.arms.items() if arm.num_synthetic > 0]


def augmentation_arms(results: Results) -> list[str]:
    """Conventional-augmentation controls, in the file's order; never the baseline itself."""
    return [
        name
        for name, arm in results.arms.items()
        if AUGMENTATION in name.lower() and not arm.num_synthetic and name != results.baseline
    ]


def compare(results: Results, reference: str) -> list[Comparison]:
    """Every synthetic arm against `reference`, which is the baseline or an augmentation arm."""
    return compare_pairs(results, [(arm, reference) for arm in synthetic_arms(results) if arm != reference])


def compare_pairs(results: Results, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """(arm, reference) pairs, whose p-values are corrected together."""
    raw = [_difference(results, arm, reference) for arm, reference in pairs]
    measured = [i for i, item in enumerate(raw) if item.p is not None]
    adjusted = dict(zip(measured, holm([raw[i].p or 0.0 for i in measured]), strict=True))
    return [_decide(item, adjusted.get(i)) for i, item in enumerate(raw)]


def _decide(item: Comparison, adjusted_p: float | None) -> Comparison:
    if item.interval is None or adjusted_p is None:
        return item
    outcome: Outcome = "no difference seen"
    if excludes_zero(item.interval) and adjusted_p < ALPHA:
        outcome = "better" if item.interval[0] > 0 else "worse"
    return replace(item, adjusted_p=adjusted_p, outcome=outcome)


def _difference(results: Results, arm: str, reference: str) -> Comparison:
    ours, theirs = results.arms[arm], results.arms[reference]
    paired = GAIN if reference == results.baseline else f"{GAIN}_over_{reference}"
    if paired in ours.metrics:
        metric = ours.metrics[paired]
        p = ours.p_value if reference == results.baseline else ours.p_values.get(reference)
        return Comparison(arm, reference, metric.value, metric.interval, _p(p, metric.value, metric.interval))
    gain = ours.metrics["accuracy"].value - theirs.metrics["accuracy"].value
    widths = [_half_width(result) for result in (ours, theirs)]
    if reference == results.baseline or None in widths:
        return Comparison(arm, reference, gain, None, None, paired=False)
    half = math.hypot(*(width or 0.0 for width in widths))
    bounds = (gain - half, gain + half)
    return Comparison(arm, reference, gain, bounds, _p(None, gain, bounds), paired=False)


def _half_width(arm: ArmResult) -> float | None:
    metric = arm.metrics.get(GAIN)
    return (metric.interval[1] - metric.interval[0]) / 2 if metric and metric.interval else None


def _p(measured: float | None, value: float, bounds: tuple[float, float] | None) -> float | None:
    """The measured p, or the normal approximation's from the 95 % interval's width."""
    if measured is not None or bounds is None:
        return measured
    error = (bounds[1] - bounds[0]) / 2 / _Z95
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * (1 - NormalDist().cdf(abs(value) / error))
