"""Twenty arms in several series: grouped in words, in the table and in the plot, and held against each other."""

import re
from dataclasses import replace

import pytest
from reporting_helpers import RATIOS, TABLE_1, Tree, arm, collect_quickly, make_results, metric, table_1_results

from hdtrain.reporting.plots import ratio_plot
from hdtrain.reporting.render import render
from hdtrain.reporting.series import arms_by_series, compare_series, has_series
from hdtrain.reporting.verdict import decide


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_whole_table_1_is_told_series_by_series() -> None:
    paragraph = decide(table_1_results()).paragraph
    assert paragraph.startswith(
        "Synthetic images made the classifier better in 15 of 20 arms; no difference was seen in 5. "
        "“HistoDiffusion”: better in all 4 arms (+3.6 to +6.4 points); "
        "“StyleGAN2”: better in 3 of 4 arms (+2.4 to +4.3 points), no difference seen in 1 (+1.3 points); "
    )
    assert (
        "Against conventional augmentation instead (arm “real, augmented”): “HistoDiffusion”: better in 2 of 4 arms "
        "(+4.4 to +5.3 points), no difference seen in 2 (+2.5 to +3.7 points; "
        "without the correction “HistoDiffusion 100%” (+3.7) would count); "
        "no difference seen in any arm of “HistoDiffusion, random”, "
    ) in paragraph
    assert "precision fails in 8 of 20 sets (0.340 to 0.480)" in paragraph
    assert "the 20 sets FD-squeezenet 12.35 to 12.35" in paragraph
    assert len(paragraph) < 3000


def test_arms_that_are_worse_are_counted_by_series_too() -> None:
    results = table_1_results()
    worse = arm(0.8, (-0.055, -0.08, -0.03), 0.0001, 160).model_copy(update={"series": "StyleGAN2"})
    paragraph = decide(results.model_copy(update={"arms": {**results.arms, "StyleGAN2 100%": worse}})).paragraph
    assert "better in 14 of 20 arms and worse in 1 of 20 arms; no difference was seen in 5." in paragraph
    assert "“StyleGAN2”: better in 2 of 4 arms (+4.0 to +4.3 points), worse in 1 (−5.5 points), no diff" in paragraph


def test_many_arms_without_a_series_are_counted_and_not_listed() -> None:
    arms = {f"arm {i}": arm(0.71, (0.01, -0.01, 0.03), 0.3, 160) for i in range(12)}
    paragraph = decide(make_results(arms={"real": arm(0.7, None, None), **arms})).paragraph
    assert paragraph.startswith(
        "The classifier with synthetic images against the one without: no difference seen in all 12 arms (+1.0 points)."
    )
    assert "“arm 3”" not in paragraph


def test_the_series_with_the_most_arms_is_the_reference_at_every_shared_ratio() -> None:
    results = table_1_results()
    first = {"random": results.arms["StyleGAN2 random 50%"]}
    compared = compare_series(results.model_copy(update={"arms": {**first, **results.arms}}))
    assert {item.reference for item in compared} == {"HistoDiffusion"}
    tuning = next(item for item in compared if item.series == "HistoDiffusion without decoder fine-tuning")
    ours, theirs = TABLE_1["HistoDiffusion"], TABLE_1[tuning.series]
    assert list(tuning.at) == list(RATIOS)
    for mine, other, pair in zip(ours, theirs, tuning.at.values(), strict=True):
        assert pair.gain == pytest.approx(other - mine)
        assert not pair.paired
        assert pair.interval == pytest.approx((other - mine - 0.02 * 2**0.5, other - mine + 0.02 * 2**0.5))
    assert tuning.mean_gain == pytest.approx((sum(theirs) - sum(ours)) / 4)
    assert "StyleGAN2, random" not in {item.series for item in compared}, "two arms of one ratio: which is meant?"


def test_a_paired_gain_between_series_is_used_where_it_was_measured() -> None:
    results = table_1_results()
    arms = dict(results.arms)
    name, key = "HistoDiffusion without decoder fine-tuning", "accuracy_gain_over_HistoDiffusion"
    for ratio in ("50%", "100%", "200%", "300%"):
        found = arms[f"{name} {ratio}"]
        arms[f"{name} {ratio}"] = found.model_copy(
            update={
                "metrics": {**found.metrics, f"{key} {ratio}": metric(-0.02, -0.03, -0.01)},
                "p_values": {f"HistoDiffusion {ratio}": 0.001 if ratio != "300%" else 0.02},
            }
        )
    verdict = decide(results.model_copy(update={"arms": arms}))
    tuning = next(item for item in verdict.series if item.series == name)
    assert [pair.outcome for pair in tuning.at.values()] == ["worse", "worse", "worse", "no difference seen"]
    assert tuning.at[1.0].adjusted_p == pytest.approx(0.016)
    assert f"“{name}”: worse at 0.5, 1 and 2, no difference seen at 3 (−2.0 points on average)" in verdict.paragraph
    assert "corrected over these 16 pairs" in verdict.paragraph


def test_the_page_groups_the_table_and_draws_accuracy_against_the_ratio(built: Tree) -> None:
    results = table_1_results()
    page = render(replace(collect_quickly(built), results=results))
    table = page[page.index('id="arms"') : page.index("Colour histogram")]
    heads = re.findall(r'<tr class="group"><th colspan="11">(.*?)</th>', table)
    assert heads == [series for series in arms_by_series(results) if series]
    assert heads[:2] == ["HistoDiffusion", "HistoDiffusion, random"]
    order = [table.index(f">{name}<") for names in arms_by_series(results).values() for name in names]
    assert order == sorted(order)
    assert "Accuracy against the ratio of synthetic to real images" in page
    drawn = text_of(str(ratio_plot(results)))
    assert all(series in drawn for series in TABLE_1)
    assert {"real", "real, augmented"} <= set(re.findall(r"real(?:, augmented)?", drawn))
    shown = text_of(page)
    assert "HistoDiffusion without pre-training 0.5 −0.007 [−0.035, 0.021]" in shown


def test_without_series_there_is_neither_plot_nor_grouping(built: Tree) -> None:
    one = arm(0.75, (0.05, 0.03, 0.07), 0.001, 160).model_copy(update={"series": "only"})
    results = make_results(arms={"real": arm(0.7, None, None), "one": one})
    assert not has_series(results)
    page = render(replace(collect_quickly(built), results=results))
    assert "Accuracy against the ratio" not in page
    assert "Between series" not in page
    assert decide(results).paragraph.startswith("Synthetic images made the classifier better: “one” +5.0 points (95 %")
