"""The paragraph that stands first. It follows from `results.json` by the rules here, in `comparisons` and `trust`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hdtrain.formats.results import YARDSTICK, Metric, Results
from hdtrain.reporting.comparisons import ALPHA, Comparison, Outcome, augmentation_arms, compare
from hdtrain.reporting.formatting import count, figure, join, p_value, percent, points, quoted
from hdtrain.reporting.trust import (
    MAX_MEMORISED_SHARE,
    MIN_PRECISION,
    Check,
    Trust,
    TrustOutcome,
    agreement_threshold,
    judge_images,
    judge_yardstick,
    used_sets,
)

COLOUR_MARGIN = 0.1
"""A classifier that sees colours alone and comes this near to the baseline says that colour does most of the work."""


@dataclass(frozen=True)
class Verdict:
    """The answer: two headlines, the paragraph, and the judgements that it was written from."""

    gain_headline: str
    trust_headline: str
    gain: Outcome
    """`better` or `worse` where at least one arm is so and none is the contrary."""
    trust: TrustOutcome
    paragraph: str
    against: dict[str, list[Comparison]]
    """Reference arm to the comparisons of every synthetic arm with it; the baseline first."""
    image_sets: list[Trust]
    colour_warning: bool


def decide(results: Results) -> Verdict:
    """Apply the rules."""
    references = [results.baseline, *augmentation_arms(results)]
    against = {reference: compare(results, reference) for reference in references}
    trusts = judge_images(results)
    used = [trust for trust in trusts if trust.image_set in used_sets(results)]
    trust = _overall_trust(used)
    colour = _colour_sentence(results)
    sentences = [
        _gain_sentence(against[results.baseline]),
        _baseline_sentence(results),
        *_augmentation_sentences(against, results.baseline),
        _correction_sentence(against),
        _trust_sentence(results, used, trust),
        _yardstick_sentence(results),
        *_unjudged_sentences(results, used),
        colour,
    ]
    return Verdict(
        gain_headline=_gain_headline(against[results.baseline]),
        trust_headline=f"Images {trust}",
        gain=_overall_gain(against[results.baseline]),
        trust=trust,
        paragraph=" ".join(sentence for sentence in sentences if sentence),
        against=against,
        image_sets=trusts,
        colour_warning=bool(colour),
    )


def _with(comparisons: Sequence[Comparison], outcome: Outcome) -> list[Comparison]:
    return [item for item in comparisons if item.outcome == outcome]


def _overall_gain(comparisons: Sequence[Comparison]) -> Outcome:
    better, worse = _with(comparisons, "better"), _with(comparisons, "worse")
    if bool(better) != bool(worse):
        return "better" if better else "worse"
    return "no difference seen" if any(item.outcome != "not measured" for item in comparisons) else "not measured"


def _gain_headline(comparisons: Sequence[Comparison]) -> str:
    total = len(comparisons)
    parts = [
        f"{outcome} in {len(found)} of {total}" if total > 1 else outcome
        for outcome in ("better", "worse")
        if (found := _with(comparisons, outcome))
    ]
    if parts:
        return f"Classifier {' and '.join(parts)}{' arms' if total > 1 else ''}"
    return "No difference seen" if _overall_gain(comparisons) == "no difference seen" else "Gain not measured"


def _gain_sentence(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "No arm was trained with synthetic images, so how much they help was not measured."
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


def _share(part: int, total: int) -> str:
    return f"all {total} arms" if part == total else f"{part} of {total} arms"


def _difference(item: Comparison) -> str:
    low, high = item.interval or (item.gain, item.gain)
    lost = ", its own interval excludes 0 but not after correction" if item.lost_by_correction else ""
    return (
        f"{quoted(item.arm)} {points(item.gain)} points (95 % interval {points(low)} to {points(high)}, "
        f"{p_value(item.adjusted_p)}{lost})"
    )


def _baseline_sentence(results: Results) -> str:
    accuracy = results.arms[results.baseline].metrics["accuracy"]
    seeds = f", {len(accuracy.seeds)} seed{'s' * (len(accuracy.seeds) != 1)}" if accuracy.seeds else ""
    return (
        f"Without them (arm {quoted(results.baseline)}) its accuracy is {percent(accuracy.value)}{_bounds(accuracy)}, "
        f"on {count(accuracy.n)} test images{seeds}."
    )


def _bounds(metric: Metric) -> str:
    if metric.interval is None:
        return ""
    return f" (95 % interval {percent(metric.interval[0])} to {percent(metric.interval[1])})"


def _augmentation_sentences(against: dict[str, list[Comparison]], baseline: str) -> list[str]:
    if not against[baseline]:
        return []
    references = [reference for reference in against if reference != baseline]
    if not references:
        return ["There is no arm with conventional augmentation, so whether that does as well is not known."]
    return [_augmentation_sentence(reference, against[reference]) for reference in references]


def _augmentation_sentence(reference: str, comparisons: Sequence[Comparison]) -> str:
    parts = [
        f"{outcome} in {join([_difference(item) for item in found])}"
        for outcome in ("better", "worse")
        if (found := _with(comparisons, outcome))
    ]
    if unseen := _with(comparisons, "no difference seen"):
        parts.append(f"no difference seen in {join([quoted(item.arm) for item in unseen])}")
    if missing := _with(comparisons, "not measured"):
        parts.append(f"nothing can be said of {join([quoted(item.arm) for item in missing])}")
    derived = any(not item.paired and item.interval for item in comparisons)
    how = " (interval from the two gains as if independent, which is wide on purpose)" if derived else ""
    return f"Against conventional augmentation instead (arm {quoted(reference)}): {'; '.join(parts)}{how}."


def _correction_sentence(against: dict[str, list[Comparison]]) -> str:
    total = max(len(comparisons) for comparisons in against.values())
    return f"A difference counts below p = {ALPHA}, after Holm's correction over the {total} arms." if total > 1 else ""


def _overall_trust(used: Sequence[Trust]) -> TrustOutcome:
    outcomes = {trust.outcome for trust in used}
    if "not trustworthy" in outcomes:
        return "not trustworthy"
    return "trustworthy" if outcomes == {"trustworthy"} else "not shown to be trustworthy"


def _trust_sentence(results: Results, used: Sequence[Trust], outcome: TrustOutcome) -> str:
    if not used:
        return "No set of synthetic images was scored, so whether the images can be trusted is not known."
    rules = (
        f"the lower bound of an independent judge's agreement with the labels above "
        f"{percent(agreement_threshold(len(results.classes)))} (chance {percent(1 / len(results.classes))}), "
        f"at most {percent(MAX_MEMORISED_SHARE)} memorised, precision at least {MIN_PRECISION:g}"
    )
    if outcome == "trustworthy":
        worst = join([_worst(used, index) for index in range(len(used[0].checks))])
        scope = f"in each of the {len(used)} sets" if len(used) > 1 else f"in {quoted(used[0].image_set)}"
        return f"The images are trustworthy by this report's rules ({rules}): {scope} {worst}."
    reasons = "; ".join(
        f"{quoted(trust.image_set)}: {join([_reason(check) for check in trust.checks if check.passed is not True])}"
        for trust in used
        if trust.outcome != "trustworthy"
    )
    return f"The images are {outcome} by this report's rules ({rules}): {reasons}."


def _worst(used: Sequence[Trust], index: int) -> str:
    checks = [trust.checks[index] for trust in used]
    judged = [check.judged for check in checks if check.judged is not None]
    several = len(used) > 1
    if checks[0].name == "memorised share":
        return f"{'at most ' if several else ''}{percent(max(judged))} of the images are memorised"
    if checks[0].name == "precision":
        return f"precision is {'at least ' if several else ''}{figure(min(judged))}"
    worst = min(checks, key=lambda check: check.judged or 0.0)
    assert worst.metric
    return f"the judge agrees with {'at least ' if several else ''}{percent(worst.metric.value)}{_bounds(worst.metric)}"


def _reason(check: Check) -> str:
    if check.passed is None:
        return f"{check.name} was not measured{'' if check.metric is None else ' with an interval'}"
    if check.name == "memorised share":
        return f"{percent(check.judged or 0.0)} of the images are memorised"
    if check.name == "precision":
        return f"precision is only {figure(check.judged)}"
    assert check.metric
    return f"the judge agrees with only {percent(check.metric.value)} of the labels{_bounds(check.metric)}"


def _yardstick_sentence(results: Results) -> str:
    """A rule that real images fail cannot tell synthetic ones from them."""
    yardstick = judge_yardstick(results)
    failed = [_reason(check) for check in yardstick.checks if check.passed is False] if yardstick else []
    return f"But real test images fail the same rules ({join(failed)}), so that says little here." if failed else ""


def _unjudged_sentences(results: Results, used: Sequence[Trust]) -> list[str]:
    """Fréchet distance and recall: reported, judged by no rule, since their scale depends on encoder and n."""
    names = [*(trust.image_set for trust in used), *([YARDSTICK] if YARDSTICK in results.image_sets else [])]
    metrics = {name: results.image_sets[name].metrics for name in names}
    shown = dict.fromkeys(
        key for found in metrics.values() for key in found if key.startswith(("FD-", "FID", "recall"))
    )
    if not shown:
        return []
    figures = [
        f"{quoted(name)} {', '.join(f'{key} {figure(found[key].value)}' for key in shown if key in found)}"
        for name, found in metrics.items()
    ]
    return [f"Figures on which no threshold is put: {'; '.join(figures)}."]


def _colour_sentence(results: Results) -> str:
    colour = results.colour_histogram.get("accuracy")
    baseline = results.arms[results.baseline].metrics["accuracy"]
    if colour is None or colour.value <= baseline.value - COLOUR_MARGIN:
        return ""
    return (
        f"Warning: a classifier that sees nothing but colour histograms reaches {percent(colour.value)}, less than "
        f"{100 * COLOUR_MARGIN:.0f} points below the baseline or above it: on this data set colour alone does most of "
        "the work, so accuracy says little about anything else."
    )
