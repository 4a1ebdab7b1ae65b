"""The plan: every image in one unit, classes in turn, and more images only extend it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdtrain.config.ranges import parse_ranges
from hdtrain.errors import ConfigError
from hdtrain.sampling.plan import SamplePlan, counts_of

counts = st.lists(st.integers(0, 20), min_size=1, max_size=9)
sizes = st.integers(1, 40)


@given(counts, sizes)
def test_the_units_cover_every_index_once_and_no_unit_is_too_large(per_class, samples_per_shard):
    plan = SamplePlan(per_class, samples_per_shard)
    units = plan.units()
    covered = [i for unit in units for i in unit.indices]
    assert covered == sorted(set(covered)) == list(plan.indices)
    assert all(len(unit.indices) == samples_per_shard for unit in units[:-1])
    assert [unit.name for unit in units] == sorted({unit.name for unit in units})


@given(counts, sizes, counts)
def test_every_class_has_its_count_and_more_of_any_class_only_add_images(per_class, size, more):
    short = SamplePlan(per_class, size)
    labels = [short.label(i) for i in short.indices]
    assert [labels.count(label) for label in range(len(per_class))] == per_class == short.class_counts
    longer = SamplePlan([a + b for a, b in zip(per_class, [*more, *per_class], strict=False)], size)
    assert set(short.indices) <= set(longer.indices)


def test_some_images_of_a_plan_are_the_same_indices():
    plan = SamplePlan([5, 2], 4, parse_ranges("0-3,7,9-100"))
    assert list(plan.indices) == [0, 1, 2, 3]  # 7 and 9 are of the second class, which has two; 8 is not asked for
    assert plan.class_counts == [2, 2]
    assert [i for unit in SamplePlan([5, 2], 4).units() for i in unit.indices] == [0, 1, 2, 3, 4, 6, 8]


def test_counts_by_name_are_in_the_order_of_the_classes_and_unknown_ones_are_refused():
    assert counts_of(3, ["a", "b"]) == [3, 3]
    assert counts_of(3, None) == [3]
    assert counts_of({"b": 4}, ["a", "b"]) == [0, 4]
    with pytest.raises(ConfigError, match="do not know c; they know a, b"):
        counts_of({"c": 1}, ["a", "b"])
    with pytest.raises(ConfigError, match="give a number"):
        counts_of({"c": 1}, None)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-4"])
def test_ranges_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="0-999,5000"):
        parse_ranges(text)
