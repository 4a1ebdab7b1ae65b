"""Arms grouped by their series, and series held against each other at the same ratio of synthetic to real images."""

from dataclasses import dataclass

from hdtrain.formats.results import ArmResult, Results
from hdtrain.reporting.comparisons import Comparison, compare_pairs

MIN_ARMS = 2
"""Arms with a series from which on the plot against the ratio says something."""


@dataclass(frozen=True)
class SeriesComparison:
    """One series against the reference; `at` is by ratio, each its arm minus the reference's."""

    series: str
    reference: str
    at: dict[float, Comparison]

    @property
    def mean_gain(self) -> float:
        """Over the ratios that both have."""
        return sum(item.gain for item in self.at.values()) / len(self.at)


def ratio_of(arm: ArmResult) -> float:
    """Synthetic images a real one, to two decimals: selected counts are rounded by class."""
    return round(arm.num_synthetic / max(1, arm.num_real), 2)


def arms_by_series(results: Results) -> dict[str, list[str]]:
    """Series to its arms, in the file's order; under "" and first those without one (baseline, controls, others)."""
    found: dict[str, list[str]] = {"": []}
    for name, arm in results.arms.items():
        found.setdefault(arm.series if arm.num_synthetic else "", []).append(name)
    return {series: names for series, names in found.items() if names}


def has_series(results: Results) -> bool:
    """Whether enough arms belong to a series."""
    return sum(len(names) for series, names in arms_by_series(results).items() if series) >= MIN_ARMS


def compare_series(results: Results) -> list[SeriesComparison]:
    """Every series against the one with the most arms (of several the first), where both have one arm of a ratio.

    p is corrected after Holm over all these pairs of arms.
    """
    by_ratio = {series: _by_ratio(results, names) for series, names in arms_by_series(results).items() if series}
    if not by_ratio:
        return []
    reference = max(by_ratio, key=lambda series: len(by_ratio[series]))
    shared = {
        series: sorted(set(arms) & set(by_ratio[reference])) for series, arms in by_ratio.items() if series != reference
    }
    pairs = [
        (by_ratio[series][ratio], by_ratio[reference][ratio]) for series, ratios in shared.items() for ratio in ratios
    ]
    found = iter(compare_pairs(results, pairs))
    compared = {series: {ratio: next(found) for ratio in ratios} for series, ratios in shared.items()}
    return [SeriesComparison(series, reference, at) for series, at in compared.items() if at]


def _by_ratio(results: Results, names: list[str]) -> dict[float, str]:
    ratios = [ratio_of(results.arms[name]) for name in names]
    return {ratio: name for ratio, name in zip(ratios, names, strict=True) if ratios.count(ratio) == 1}
