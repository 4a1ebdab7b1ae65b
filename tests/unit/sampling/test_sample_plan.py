"""The plan: every image in one unit, classes in turn, and more images only extend it."""

from hypothesis import given
from hypothesis import strategies as st

from hdtrain.sampling.plan import SamplePlan

counts = st.integers(1, 40)


@given(counts, st.integers(1, 9), counts)
def test_the_units_cover_every_index_once_and_no_unit_is_too_large(per_class, num_classes, samples_per_shard):
    plan = SamplePlan(per_class, num_classes, samples_per_shard)
    units = plan.units()
    assert [i for unit in units for i in range(unit.start, unit.stop)] == list(range(per_class * num_classes))
    assert all(unit.stop - unit.start == samples_per_shard for unit in units[:-1])
    assert len({unit.name for unit in units}) == len(units)
    assert [unit.name for unit in units] == sorted(unit.name for unit in units)


@given(counts, st.integers(1, 9), counts, counts)
def test_classes_are_balanced_and_a_longer_run_begins_as_the_shorter_one(per_class, num_classes, size, more):
    short, long = (SamplePlan(count, num_classes, size) for count in (per_class, per_class + more))
    labels = [short.label(i) for i in range(short.num_images)]
    assert [labels.count(label) for label in range(num_classes)] == [per_class] * num_classes
    assert labels == [long.label(i) for i in range(short.num_images)]
    assert short.units()[:-1] == long.units()[: len(short.units()) - 1]
