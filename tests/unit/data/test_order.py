"""Order: every sample once an epoch, the same sequence for any number of ranks and from any point on."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.data.order import SampleOrder
from hdtrain.errors import DataError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**63 - 1)


def places(order, positions) -> list[tuple[int, int]]:
    shards, samples = order.locate(positions)
    return list(zip(shards.tolist(), samples.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(sizes, seeds, st.integers(1, 5), st.integers(0, 3))
def test_every_sample_comes_exactly_once_an_epoch(sizes, seed, block_shards, epoch):
    order = SampleOrder(sizes, seed, block_shards)
    seen = places(order, range(epoch * order.epoch_size, (epoch + 1) * order.epoch_size))
    assert sorted(seen) == [(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)]


@settings(deadline=None, max_examples=60)
@given(sizes, seeds, st.lists(st.integers(0, 25), max_size=6))
def test_a_position_means_the_same_sample_wherever_the_reading_was_cut(sizes, seed, lengths):
    whole = places(SampleOrder(sizes, seed, 2), range(sum(lengths)))
    pieces, start = [], 0
    for length in lengths:  # a fresh order each time: a process that was started again
        pieces += places(SampleOrder(sizes, seed, 2), range(start, start + length))
        start += length
    assert pieces == whole


@settings(deadline=None, max_examples=60)
@given(sizes, seeds, st.integers(1, 5))
def test_never_more_shards_are_begun_and_not_finished_than_a_block_holds(sizes, seed, block_shards):
    order, left = SampleOrder(sizes, seed, block_shards), list(sizes)
    for shard, _ in places(order, range(order.epoch_size)):
        left[shard] -= 1
        assert sum(0 < rest < size for rest, size in zip(left, sizes, strict=True)) <= block_shards


@settings(deadline=None, max_examples=40)
@given(sizes, seeds, st.integers(1, 5), st.integers(0, 60))
def test_how_often_each_shard_was_seen_is_known_without_reading(sizes, seed, block_shards, num_positions):
    order = SampleOrder(sizes, seed, block_shards)
    shards, _ = order.locate(range(num_positions))
    assert order.seen(num_positions).tolist() == np.bincount(shards, minlength=len(sizes)).tolist()
    if num_positions:
        assert shards[-1] in order.shards_from(num_positions - 1)


@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("sizes", [[5, 3, 4], [7], [0, 9, 0, 2]], ids=["several", "fewer than ranks", "empty ones"])
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
    assert places(order, steps) == places(order, range(2 * total))


def test_epochs_and_seeds_differ_and_blocks_bound_what_is_open_at_once():
    order = SampleOrder([10] * 12, seed=0, block_shards=3)
    first, second = places(order, range(120)), places(order, range(120, 240))
    assert first != second
    assert first != places(SampleOrder([10] * 12, seed=1, block_shards=3), range(120))
    for start in range(0, 120, 30):
        members = {shard for shard, _ in first[start : start + 30]}
        assert len(members) == 3
        assert order.shards_from(start)[:3] == order.shards_from(start + 29)[:3]
        assert set(order.shards_from(start)[:3]) == members
    assert [shard for shard, _ in first[:30]] != sorted(shard for shard, _ in first[:30])
    assert set(order.shards_from(95)[3:]) - set(order.shards_from(95)[:3]) <= {shard for shard, _ in second[:30]}


def test_the_order_of_a_seed_is_the_one_that_checkpoints_were_made_with():
    shards, samples = SampleOrder([4, 3, 5, 2], seed=7, block_shards=2).locate(range(18))
    assert shards.tolist() == [2, 0, 2, 0, 0, 2, 0, 2, 2, 1, 3, 3, 1, 1, 0, 2, 2, 2]
    assert samples.tolist() == [4, 0, 3, 1, 3, 2, 2, 0, 1, 2, 0, 1, 1, 0, 1, 0, 1, 3]


def test_a_hundred_thousand_shards_take_a_few_megabytes():
    tracemalloc.start()
    order = SampleOrder(np.full(100_000, 1000), seed=0, block_shards=8)
    for start in range(40_000_000, 40_032_000, 64):
        order.locate(range(start, start + 64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="no samples"):
        SampleOrder([0, 0], 0, 8)
