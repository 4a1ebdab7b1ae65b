"""Order: every sample once an epoch, the same sequence for any number of ranks and from any point on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import BatchConfig
from hdtrain.data.order import SampleOrder
from hdtrain.errors import DataError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_comes_exactly_once_an_epoch(sizes, seed, block_shards, epoch):
    order = SampleOrder(sizes, seed, block_shards)
    seen = order.locate(range(epoch * order.epoch_size, (epoch + 1) * order.epoch_size))
    assert sorted(seen) == [(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)]


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 20))
def test_a_position_means_the_same_sample_however_one_comes_to_it(sizes, seed, start, count):
    whole = SampleOrder(sizes, seed, 2).locate(range(start + count))
    assert SampleOrder(sizes, seed, 2).locate(range(start, start + count)) == whole[start:]


@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("sizes", [[5, 3, 4], [7]], ids=["three shards", "fewer shards than ranks"])
def test_the_ranks_together_read_the_one_sequence_and_go_on_at_another_world_size(world_size, sizes):
    total = 840  # two passes at every world size
    order = SampleOrder(sizes, seed=3, block_shards=2)
    micro = total // world_size // 2
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=total, micro_batch_size=micro), world_size)
    steps = [
        position
        for step in range(2)
        for accumulation_step in range(plan.accumulation_steps)
        for rank in range(world_size)
        for position in plan.positions(step, accumulation_step, rank)
    ]
    assert order.locate(steps) == order.locate(range(2 * total))


def test_epochs_and_seeds_differ_and_blocks_bound_what_is_open_at_once():
    order = SampleOrder([10] * 12, seed=0, block_shards=3)
    first, second = order.locate(range(120)), order.locate(range(120, 240))
    assert first != second
    assert first != SampleOrder([10] * 12, seed=1, block_shards=3).locate(range(120))
    for start in range(0, 120, 30):
        assert len({shard for shard, _ in first[start : start + 30]}) == 3
    assert [shard for shard, _ in first[:30]] != sorted(shard for shard, _ in first[:30])


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="no samples"):
        SampleOrder([0, 0], 0, 8)
