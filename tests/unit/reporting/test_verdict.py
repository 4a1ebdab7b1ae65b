"""The first paragraph says what the figures say, and no more."""

import pytest
from reporting_helpers import CLASSES, arm, image_set, make_results, metric

from hdtrain.formats.results import ArmResult, Results
from hdtrain.reporting.comparisons import compare, holm
from hdtrain.reporting.trust import agreement_threshold, judge_images
from hdtrain.reporting.verdict import decide

REAL = arm(0.70, None, None)
BETTER = arm(0.75, (0.05, 0.03, 0.07), 0.001, 160)
WORSE = arm(0.64, (-0.06, -0.08, -0.04), 0.001, 160)
UNCLEAR = arm(0.71, (0.01, -0.01, 0.03), 0.3, 160)


def results_of(arms: dict[str, ArmResult], **changes: object) -> Results:
    return make_results(arms={"real": REAL, **arms}, **changes)


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_better_arm() -> None:
    verdict = decide(results_of({"selective-1": BETTER}))
    assert verdict.gain == "better"
    assert verdict.gain_headline == "Classifier better"
    assert verdict.paragraph.startswith(
        "Synthetic images made the classifier better: “selective-1” +5.0 points "
        "(95 % interval +3.0 to +7.0, p = 0.001). "
        "Without them (arm “real”) its accuracy is 70.0 % (95 % interval 67.0 % to 73.0 %), "
        "on 480 test images, 3 seeds."
    )


def test_one_worse_arm() -> None:
    verdict = decide(results_of({"random-1": WORSE}))
    assert verdict.gain == "worse"
    assert "made the classifier worse: “random-1” −6.0 points (95 % interval −8.0 to −4.0" in verdict.paragraph
    assert "better" not in verdict.paragraph


def test_no_difference_is_not_called_a_gain() -> None:
    verdict = decide(results_of({"random-1": UNCLEAR}))
    assert verdict.gain == "no difference seen"
    assert verdict.paragraph.startswith(
        "No difference was seen between the classifier with and without synthetic images:"
    )
    assert "better" not in verdict.paragraph


def test_arms_that_disagree_are_all_named() -> None:
    verdict = decide(results_of({"selective-1": BETTER, "random-1": WORSE, "random-0.5": UNCLEAR}))
    assert verdict.gain == "no difference seen"
    assert verdict.gain_headline == "Classifier better in 1 of 3 and worse in 1 of 3 arms"
    assert "better in 1 of 3 arms: “selective-1”" in verdict.paragraph
    assert "worse in 1 of 3 arms: “random-1”" in verdict.paragraph
    assert "no difference was seen in 1 of 3 arms: “random-0.5”" in verdict.paragraph


def test_holm_takes_back_a_lucky_arm_among_many() -> None:
    lucky = arm(0.72, (0.02, 0.001, 0.039), 0.04, 160)
    arms = {"lucky": lucky} | {f"random-{i}": UNCLEAR for i in range(1, 5)}
    verdict = decide(results_of(arms))
    assert verdict.gain == "no difference seen"
    assert "its own interval excludes 0 but not after correction" in verdict.paragraph
    assert "after Holm's correction over the 5 arms" in verdict.paragraph
    assert decide(results_of({"lucky": lucky})).gain == "better"


def test_a_small_p_does_not_overrule_an_interval_with_zero() -> None:
    assert decide(results_of({"odd": arm(0.71, (0.01, -0.001, 0.02), 0.001, 160)})).gain == "no difference seen"


def test_nothing_is_said_without_an_interval_or_without_synthetic_arms() -> None:
    verdict = decide(results_of({"selective-1": arm(0.75, None, None, 160)}))
    assert verdict.gain == "not measured"
    assert "The gain of “selective-1” has no interval, so nothing is said about it." in verdict.paragraph
    assert "No arm was trained with synthetic images" in decide(results_of({})).paragraph


def test_conventional_augmentation_is_the_second_reference() -> None:
    augmented = arm(0.75, (0.05, 0.03, 0.07), 0.001)
    verdict = decide(results_of({"real-augmented": augmented, "selective-1": BETTER}))
    assert [item.arm for item in verdict.against["real"]] == ["selective-1"]
    assert verdict.against["real-augmented"][0].outcome == "no difference seen"
    assert (
        "Against conventional augmentation instead (arm “real-augmented”): no difference seen in “selective-1”"
        in verdict.paragraph
    )


def test_the_paired_interval_against_augmentation_is_used_where_it_was_measured() -> None:
    paired = BETTER.model_copy(
        update={"metrics": {**BETTER.metrics, "accuracy_gain_over_real-augmented": metric(0.02, 0.01, 0.03)}}
    )
    results = results_of({"real-augmented": arm(0.73, (0.03, 0.01, 0.05), 0.01), "selective-1": paired})
    comparison = compare(results, "real-augmented")[0]
    assert (comparison.paired, comparison.outcome, comparison.interval) == (True, "better", (0.01, 0.03))
    unpaired = results_of({"real-augmented": arm(0.73, (0.03, 0.01, 0.05), 0.01), "selective-1": BETTER})
    derived = compare(unpaired, "real-augmented")[0]
    assert not derived.paired
    assert derived.interval == pytest.approx((0.02 - 0.02 * 2**0.5, 0.02 + 0.02 * 2**0.5))


def test_a_synthetic_arm_that_also_augments_is_no_control() -> None:
    both = BETTER.model_copy()
    verdict = decide(results_of({"selective-1-augmented": both}))
    assert list(verdict.against) == ["real"]
    assert "There is no arm with conventional augmentation" in verdict.paragraph


def test_trustworthy_states_thresholds_and_the_worst_figures() -> None:
    verdict = decide(
        results_of({"s": BETTER}, image_sets={"a": image_set(0.8, 0.01, 0.7), "b": image_set(0.9, 0.02, 0.6)})
    )
    assert verdict.trust == "trustworthy"
    assert "above 50.0 % (chance 25.0 %), at most 5.0 % memorised, precision at least 0.5" in verdict.paragraph
    assert "at least 80.0 %" in verdict.paragraph
    assert "at most 2.0 % of the images are memorised" in verdict.paragraph
    assert "“a” FD-squeezenet 12.35, recall 0.420" in verdict.paragraph


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (image_set(memorised=0.08), "8.0 % of the images are memorised"),
        (image_set(precision=0.4), "precision is only 0.400"),
        (image_set(agreement=0.52), "agrees with only 52.0 % of the labels"),
    ],
)
def test_one_failed_rule_is_enough_to_distrust(images: object, reason: str) -> None:
    verdict = decide(results_of({"s": BETTER}, image_sets={"s": images}))
    assert verdict.trust == "not trustworthy"
    assert reason in verdict.paragraph


def test_thresholds_are_exact() -> None:
    at_limit = image_set(agreement=0.55, memorised=0.05, precision=0.5)
    states = [check.passed for check in judge_images(make_results(image_sets={"s": at_limit}))[0].checks]
    assert states == [True, True, True]
    just_at_chance = image_set(agreement=0.54)
    assert judge_images(make_results(image_sets={"s": just_at_chance}))[0].checks[0].passed is False


@pytest.mark.parametrize("name", ["label_agreement", "memorised_share", "precision"])
def test_a_missing_figure_is_not_a_pass(name: str) -> None:
    images = image_set()
    without = images.model_copy(update={"metrics": {k: v for k, v in images.metrics.items() if k != name}})
    nan = images.model_copy(update={"metrics": {**images.metrics, name: metric(float("nan"))}})
    for broken in (without, nan):
        verdict = decide(results_of({"s": BETTER}, image_sets={"s": broken}))
        assert verdict.trust == "not shown to be trustworthy"
        assert f"{name.replace('_', ' ')} was not measured" in verdict.paragraph


def test_the_pool_before_selection_is_judged_but_does_not_decide() -> None:
    verdict = decide(results_of({"s": BETTER}, image_sets={"s": image_set(), "candidates": image_set(precision=0.1)}))
    assert verdict.trust == "trustworthy"
    assert [item.outcome for item in verdict.image_sets] == ["trustworthy", "not trustworthy"]
    assert (
        decide(results_of({"s": BETTER}, image_sets={"candidates": image_set(precision=0.1)})).trust
        == "not trustworthy"
    )
    assert "No set of synthetic images was scored" in decide(results_of({"s": BETTER}, image_sets={})).paragraph


def test_few_classes_have_a_threshold_that_can_be_met() -> None:
    assert agreement_threshold(9) == pytest.approx(2 / 9)
    assert agreement_threshold(3) == pytest.approx(2 / 3)
    assert agreement_threshold(2) == pytest.approx(0.75)


@pytest.mark.parametrize(("colour", "warned"), [(0.61, True), (0.85, True), (0.60, False), (0.3, False)])
def test_colour_alone_is_warned_about(colour: float, warned: bool) -> None:
    verdict = decide(results_of({"s": BETTER}, colour_histogram={"accuracy": metric(colour)}))
    assert verdict.colour_warning is warned
    assert ("Warning: a classifier that sees nothing but colour histograms" in verdict.paragraph) is warned


def test_single_image_set_and_class_names_do_not_break_grammar() -> None:
    verdict = decide(results_of({"s": BETTER}, image_sets={"s": image_set()}, classes=CLASSES))
    assert (
        "in “s” the judge agrees with 81.0 % (95 % interval 77.0 % to 85.0 %), 1.2 % of the images are memorised"
        in (verdict.paragraph)
    )


def test_real_test_images_are_the_yardstick_and_not_a_synthetic_set() -> None:
    sets = {"s": image_set(), "real test images": image_set(precision=0.9)}
    verdict = decide(results_of({"s": BETTER}, image_sets=sets))
    assert [item.image_set for item in verdict.image_sets] == ["s"]
    assert verdict.trust == "trustworthy"
    assert "But real test images fail" not in verdict.paragraph
    assert "“real test images” FD-squeezenet 12.35" in verdict.paragraph
    hard = {"s": image_set(precision=0.3), "real test images": image_set(precision=0.4)}
    verdict = decide(results_of({"s": BETTER}, image_sets=hard))
    assert verdict.trust == "not trustworthy"
    assert "But real test images fail the same rules (precision is only 0.400)" in verdict.paragraph
    only = decide(results_of({"s": BETTER}, image_sets={"real test images": image_set()}))
    assert "No set of synthetic images was scored" in only.paragraph
    assert only.trust == "not shown to be trustworthy"
