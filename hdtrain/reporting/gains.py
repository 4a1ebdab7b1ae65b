"""What is said of the gains: arm after arm where they are few, else series after series."""

from collections.abc import Mapping, Sequence

from hdtrain.formats.results import Results
from hdtrain.reporting.comparisons import ALPHA, Comparison, Outcome
from hdtrain.reporting.formatting import join, p_value, points, quoted
from hdtrain.reporting.series import SeriesComparison, arms_by_series, has_series

FEW = 6
"""Up to so many arms are named one by one."""
OUTCOMES: tuple[Outcome, ...] = ("better", "worse", "no difference seen", "not measured")


def overall_gain(comparisons: Sequence[Comparison]) -> Outcome:
    """`better` or `worse` where at least one arm is so and none is the contrary."""
    better, worse = _with(comparisons, "better"), _with(comparisons, "worse")
    if bool(better) != bool(worse):
        return "better" if better else "worse"
    return "no difference seen" if any(item.outcome != "not measured" for item in comparisons) else "not measured"


def gain_headline(comparisons: Sequence[Comparison]) -> str:
    """The badge."""
    total = len(comparisons)
    parts = [
        f"{outcome} in {len(found)} of {total}" if total > 1 else outcome
        for outcome in ("better", "worse")
        if (found := _with(comparisons, outcome))
    ]
    if parts:
        return f"Classifier {' and '.join(parts)}{' arms' if total > 1 else ''}"
    return "No difference seen" if overall_gain(comparisons) == "no difference seen" else "Gain not measured"


def gain_sentences(results: Results, comparisons: Sequence[Comparison]) -> list[str]:
    """Every arm against the baseline."""
    if not comparisons:
        return ["No arm was trained with synthetic images, so how much they help was not measured."]
    if len(comparisons) <= FEW:
        return [_gain_of_each(comparisons)]
    if not has_series(results):
        return [f"The classifier with synthetic images against the one without: {_counts(comparisons)}."]
    series = _by_series(results, comparisons)
    return [_gain_in_numbers(comparisons), f"{series[0].upper()}{series[1:]}."]


def augmentation_sentences(results: Results, against: Mapping[str, list[Comparison]]) -> list[str]:
    """Every arm against conventional augmentation."""
    if not against[results.baseline]:
        return []
    references = [reference for reference in against if reference != results.baseline]
    if not references:
        return ["There is no arm with conventional augmentation, so whether that does as well is not known."]
    sentences = []
    for reference in references:
        comparisons = against[reference]
        few = len(comparisons) <= FEW
        said = _augmentation_of_each(comparisons) if few else _by_series(results, comparisons)
        sentences.append(
            f"Against conventional augmentation instead (arm {quoted(reference)}): {said}{_how(comparisons)}."
        )
    return sentences


def series_sentences(compared: Sequence[SeriesComparison]) -> list[str]:
    """Every series against the one with the most arms, at the ratios that both have."""
    if not compared:
        return []
    parts, alike = [], []
    for item in compared:
        by_outcome: dict[Outcome, list[str]] = {}
        for ratio, comparison in item.at.items():
            by_outcome.setdefault(comparison.outcome, []).append(f"{ratio:g}")
        mean = f"{points(item.mean_gain)} points{' on average' * (len(item.at) > 1)}"
        if list(by_outcome) == ["no difference seen"]:
            alike.append(f"{quoted(item.series)} ({mean})")
            continue
        said = [f"{outcome} at {join(by_outcome[outcome])}" for outcome in OUTCOMES if outcome in by_outcome]
        parts.append(f"{quoted(item.series)}: {', '.join(said)} ({mean})")
    if alike:
        parts.append(f"no difference seen at any ratio in {join(alike)}")
    pairs = [comparison for item in compared for comparison in item.at.values()]
    corrected = f", corrected over these {len(pairs)} pairs" if len(pairs) > 1 else ""
    return [
        f"Against {quoted(compared[0].reference)} at the same ratio of synthetic to real images{corrected}: "
        f"{'; '.join(parts)}{_how(pairs)}."
    ]


def correction_sentence(against: Mapping[str, list[Comparison]]) -> str:
    """What counts as a difference."""
    total = max(len(comparisons) for comparisons in against.values())
    return f"A difference counts below p = {ALPHA}, after Holm's correction over the {total} arms." if total > 1 else ""


def _how(comparisons: Sequence[Comparison]) -> str:
    derived = any(not item.paired and item.interval for item in comparisons)
    return "; intervals come from the two gains as if independent, which is wide on purpose" if derived else ""


def _with(comparisons: Sequence[Comparison], outcome: Outcome) -> list[Comparison]:
    return [item for item in comparisons if item.outcome == outcome]


def _gain_in_numbers(comparisons: Sequence[Comparison]) -> str:
    total = len(comparisons)
    unseen, missing = len(_with(comparisons, "no difference seen")), len(_with(comparisons, "not measured"))
    gap = f"; the gain of {missing} has no interval, so nothing is said about it" if missing else ""
    found = [
        f"{outcome} in {_share(len(own), total)}"
        for outcome in ("better", "worse")
        if (own := _with(comparisons, outcome))
    ]
    if found:
        rest = f"; no difference was seen in {unseen}" if unseen else ""
        return f"Synthetic images made the classifier {' and '.join(found)}{rest}{gap}."
    scope = f"any of the {total} arms" if unseen == total else _share(unseen, total)
    return f"No difference was seen between the classifier with and without synthetic images in {scope}{gap}."


def _by_series(results: Results, comparisons: Sequence[Comparison]) -> str:
    """`“A”: better in 3 of 5 arms (+1.0 to +3.0 points), no difference seen in 2 (…); “B”: …`."""
    series_of = {name: series for series, names in arms_by_series(results).items() for name in names}
    groups: dict[str, list[Comparison]] = {}
    for item in comparisons:
        groups.setdefault(series_of[item.arm], []).append(item)
    said, alike = [], list[str]()
    for series in sorted(groups, key=lambda name: not name):  # those without a series last
        own = groups[series]
        if series and all(item.outcome == "no difference seen" for item in own):
            alike.append(series)
            continue
        names = quoted(series) if series else join([quoted(item.arm) for item in own]) if len(own) <= FEW else ""
        said.append(f"{names}: {_counts(own)}" if names else _counts(own))
    if alike:
        own = [item for series in alike for item in groups[series]]
        said.append(f"no difference seen in any arm of {join([quoted(series) for series in alike])} ({_span(own)})")
    return "; ".join(said)


def _counts(own: Sequence[Comparison]) -> str:
    total, parts = len(own), list[str]()
    for outcome in OUTCOMES:
        if not (found := _with(own, outcome)):
            continue
        share = "" if total == 1 else f" in {_share(len(found), total)}" if not parts else f" in {len(found)}"
        parts.append(f"{outcome}{share} ({_span(found)})")
    return ", ".join(parts)


def _span(found: Sequence[Comparison]) -> str:
    gains = [item.gain for item in found]
    low, high = points(min(gains)), points(max(gains))
    lost = [item for item in found if item.lost_by_correction]
    named = join([f"{quoted(item.arm)} ({points(item.gain)})" for item in lost[:FEW]])
    more = f" and {len(lost) - FEW} more" if len(lost) > FEW else ""
    note = f"; without the correction {named}{more} would count" if lost else ""
    return f"{low} points{note}" if low == high else f"{low} to {high} points{note}"


def _gain_of_each(comparisons: Sequence[Comparison]) -> str:
    total = len(comparisons)
    groups: list[str] = []
    for outcome in ("better", "worse"):
        if found := _with(comparisons, outcome):
            share = f" in {_share(len(found), total)}" if total > 1 else ""
            verb = "made the classifier " if not groups else ""
            groups.append(f"{verb}{outcome}{share}: {join([_difference(item) for item in found])}")
    unseen = _with(comparisons, "no difference seen")
    listing = join([_difference(item) for item in unseen])
    if unseen and groups:
        groups.append(f"no difference was seen in {_share(len(unseen), total)}: {listing}")
    missing = [quoted(item.arm) for item in _with(comparisons, "not measured")]
    gap = f" The gain of {join(missing)} has no interval, so nothing is said about it." if missing else ""
    if groups:
        return f"Synthetic images {'; '.join(groups)}.{gap}"
    if not unseen:
        return gap.strip()
    scope = (
        "" if total == 1 else f" in any of the {total} arms" if not missing else f" in {len(unseen)} of {total} arms"
    )
    return f"No difference was seen between the classifier with and without synthetic images{scope}: {listing}.{gap}"


def _augmentation_of_each(comparisons: Sequence[Comparison]) -> str:
    parts = [
        f"{outcome} in {join([_difference(item) for item in found])}"
        for outcome in ("better", "worse")
        if (found := _with(comparisons, outcome))
    ]
    if unseen := _with(comparisons, "no difference seen"):
        parts.append(f"no difference seen in {join([quoted(item.arm) for item in unseen])}")
    if missing := _with(comparisons, "not measured"):
        parts.append(f"nothing can be said of {join([quoted(item.arm) for item in missing])}")
    return "; ".join(parts)


def _share(part: int, total: int) -> str:
    return f"all {total} arms" if part == total else f"{part} of {total} arms"


def _difference(item: Comparison) -> str:
    low, high = item.interval or (item.gain, item.gain)
    lost = ", its own interval excludes 0 but not after correction" if item.lost_by_correction else ""
    return (
        f"{quoted(item.arm)} {points(item.gain)} points (95 % interval {points(low)} to {points(high)}, "
        f"{p_value(item.adjusted_p)}{lost})"
    )
