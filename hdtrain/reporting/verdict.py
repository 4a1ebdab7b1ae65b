"""The paragraph that stands first. It follows from `results.json` by the rules here, in `comparisons` and `trust`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hdtrain.formats.results import YARDSTICK, Metric, Results
from hdtrain.reporting.comparisons import Comparison, Outcome, augmentation_arms, compare
from hdtrain.reporting.formatting import count, figure, join, percent, quoted
from hdtrain.reporting.gains import (
    augmentation_sentences,
    correction_sentence,
    gain_headline,
    gain_sentences,
    overall_gain,
    series_sentences,
)
from hdtrain.reporting.series import SeriesComparison, compare_series
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

FEW_SETS = 4
"""Up to so many sets of images are spoken of one by one."""
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
    series: list[SeriesComparison]
    """Every series against the one with the most arms."""
    image_sets: list[Trust]
    colour_warning: bool


def decide(results: Results) -> Verdict:
    """Apply the rules."""
    references = [results.baseline, *augmentation_arms(results)]
    against = {reference: compare(results, reference) for reference in references}
    series = compare_series(results)
    trusts = judge_images(results)
    used = [trust for trust in trusts if trust.image_set in used_sets(results)]
    trust = _overall_trust(used)
    colour = _colour_sentence(results)
    sentences = [
        *gain_sentences(results, against[results.baseline]),
        _baseline_sentence(results),
        *augmentation_sentences(results, against),
        correction_sentence(against),
        *series_sentences(series),
        _trust_sentence(results, used, trust),
        _yardstick_sentence(results),
        *_unjudged_sentences(results, used),
        colour,
    ]
    return Verdict(
        gain_headline=gain_headline(against[results.baseline]),
        trust_headline=_trust_headline(used, trust),
        gain=overall_gain(against[results.baseline]),
        trust=trust,
        paragraph=" ".join(sentence for sentence in sentences if sentence),
        against=against,
        series=series,
        image_sets=trusts,
        colour_warning=bool(colour),
    )


def _trust_headline(used: Sequence[Trust], trust: TrustOutcome) -> str:
    """Of how many sets it is said, where not of all."""
    found = sum(each.outcome == trust for each in used)
    return f"Images {trust}" if found in (0, len(used)) else f"Images of {found} of {len(used)} arms {trust}"


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
    failing = [trust for trust in used if trust.outcome != "trustworthy"]
    reasons = "; ".join(
        f"{quoted(trust.image_set)}: {join([_reason(check) for check in trust.checks if check.passed is not True])}"
        for trust in failing
    )
    if len(failing) > FEW_SETS:
        reasons = _reasons_of_many(used)
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


def _reasons_of_many(used: Sequence[Trust]) -> str:
    """How many sets fail each rule, and between which figures."""
    parts = []
    for index, first in enumerate(used[0].checks):
        checks = [trust.checks[index] for trust in used]
        values = [check.metric.value for check in checks if check.passed is False and check.metric]
        missing = sum(check.passed is None for check in checks)
        shown = figure if first.name == "precision" else percent
        if values:
            span = shown(min(values)) if len(values) == 1 else f"{shown(min(values))} to {shown(max(values))}"
            parts.append(f"{first.name} fails in {len(values)} of {len(used)} sets ({span})")
        if missing:
            parts.append(f"{first.name} was not measured in {missing}")
    return "; ".join(parts)


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
        if len(used) <= FEW_SETS or name == YARDSTICK
    ]
    if len(used) > FEW_SETS:
        own = [metrics[trust.image_set] for trust in used]
        spans = [f"{key} {_span([found[key].value for found in own if key in found])}" for key in shown]
        figures.insert(0, f"the {len(used)} sets {', '.join(spans)}")
    return [f"Figures on which no threshold is put: {'; '.join(figures)}."]


def _span(values: Sequence[float]) -> str:
    return f"{figure(min(values))} to {figure(max(values))}" if values else "–"


def _colour_sentence(results: Results) -> str:
    colour = results.colour_histogram.get("accuracy")
    baseline = results.arms[results.baseline].metrics["accuracy"]
    if colour is None or colour.value <= baseline.value - COLOUR_MARGIN:
        return ""
    return (
        f"Warning: a classifier that sees nothing but colour histograms reaches {percent(colour.value)}, where the "
        f"baseline has {percent(baseline.value)}: on this data set colour alone does most of the work, so accuracy "
        "says little about anything else."
    )
