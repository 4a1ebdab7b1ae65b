"""Mixtures: exact shares in every prefix, no repeat before a source is through, the same for any ranks and restarts."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hdtrain.config.adaptation import AdaptDecoderConfig, ImageClassifier, TimmClassifier
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.config.load import validate
from hdtrain.config.training import TrainVaeConfig
from hdtrain.data.mixture import MAX_CYCLE, Schedule, even_cycle, make_order, quotas_of
from hdtrain.errors import ConfigError, DataError

weights = st.lists(st.integers(1, 60), min_size=1, max_size=6) | st.lists(
    st.integers(1, 100).map(lambda percent: percent / 100), min_size=1, max_size=6
)
seeds = st.integers(0, 2**63 - 1)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(deadline=None, max_examples=60)
@given(weights, seeds, st.integers(0, 5000), st.integers(1, 3000))
@example([312_320, 7_901, 482_958], 0, 99_000, 3000)  # rounded to a cycle of 100,000, of which this crosses the end
def test_in_every_prefix_each_source_is_within_one_sample_of_its_share(weights, seed, start, count):
    schedule = Schedule(weights, seed)
    sources, _ = schedule.locate(range(start, start + count))
    taken = schedule.taken(start) + np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    shares = np.array(quotas_of(weights)) / sum(quotas_of(weights))
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=1 / MAX_CYCLE)
    assert np.abs(taken - np.arange(start + 1, start + count + 1)[:, None] * shares).max() < 1 + 1e-9
    assert taken[-1].tolist() == schedule.taken(start + count).tolist()


@settings(deadline=None, max_examples=40)
@given(weights, seeds, st.integers(1, 4000))
def test_a_source_is_asked_for_its_samples_one_after_the_other(weights, seed, count):
    sources, own = Schedule(weights, seed).locate(range(count))
    for source in range(len(weights)):
        assert own[sources == source].tolist() == list(range((sources == source).sum()))


@settings(deadline=None, max_examples=40)
@given(weights, seeds, st.lists(st.integers(0, 700), min_size=1, max_size=5), st.data())
def test_a_position_means_the_same_sample_wherever_the_reading_was_cut(weights, seed, lengths, data):
    sizes = [np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))) for _ in weights]
    whole = make_order(sizes, weights, seed, 2).locate(range(sum(lengths)))
    ends = np.cumsum(lengths).tolist()
    pieces = [
        make_order(sizes, weights, seed, 2).locate(range(end - length, end))
        for end, length in zip(ends, lengths, strict=True)
    ]
    assert same(whole, [np.concatenate(column) for column in zip(*pieces, strict=True)])
    order = make_order(sizes, weights, seed, 2)
    assert order.seen(sum(lengths)).tolist() == np.bincount(whole[0], minlength=sum(map(len, sizes))).tolist()
    if len(whole[0]):
        assert whole[0][-1] in order.shards_from(sum(lengths) - 1)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(0, 2))
def test_no_sample_comes_again_before_its_source_is_through(seed, copies):
    sizes = [np.array([4, 0, 3]), np.array([6]), np.array([2, 2])]
    order = make_order(sizes, [0.5, 0.3, 0.2], seed, 2, copies)
    shards, samples = order.locate(range(400))
    base, source_of = shards % 6, np.array([0, 0, 0, 1, 2, 2])
    for source, of_source in enumerate(sizes):
        places = list(
            zip(shards[source_of[base] == source].tolist(), samples[source_of[base] == source].tolist(), strict=True)
        )
        epoch = int(of_source.sum()) * (1 + copies)
        for start in range(0, len(places) - epoch + 1, epoch):
            assert len(set(places[start : start + epoch])) == epoch


@pytest.mark.parametrize("world_size", range(1, 8))
def test_the_ranks_together_read_the_one_sequence(world_size):
    total = 840
    order = make_order([np.array([5, 3]), np.array([7])], [0.75, 0.25], 3, 2)
    plan = BatchPlan.from_config(
        BatchConfig(global_batch_size=total, micro_batch_size=total // world_size // 2), world_size
    )
    positions = [
        position
        for accumulation_step in range(plan.accumulation_steps)
        for rank in range(world_size)
        for position in plan.positions(0, accumulation_step, rank)
    ]
    assert same(order.locate(positions), order.locate(range(total)))


def test_no_rank_and_no_place_in_the_batch_always_gets_the_same_source():
    sources, _ = Schedule([1, 1], seed=0).locate(range(4000))
    for rank in range(2):
        assert 0.3 < sources[rank::2].mean() < 0.7
    assert not same([sources], [Schedule([1, 1], seed=1).locate(range(4000))[0]])


def test_two_sources_of_the_same_sizes_are_not_shuffled_alike():
    order = make_order([np.array([50]), np.array([50])], [1, 1], 0, 1)
    shards, samples = order.locate(range(100))
    assert samples[shards == 0].tolist() != samples[shards == 1].tolist()


def test_shares_are_exact_where_a_short_cycle_holds_them_and_rounded_to_hundred_thousandths_else():
    assert quotas_of([0.5, 0.3, 0.2]) == [5, 3, 2]
    assert quotas_of([1, 2]) == [1, 2]
    assert quotas_of([312_320, 7_901, 482_958]) == [38_885, 984, 60_131]
    assert even_cycle([1, 1, 2]).tolist().count(2) == 2


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 0.0], "greater than 0"),
        ([1.0, float("nan")], "greater than 0"),
        ([1e9, 1.0], f"smallest share is below 1/{MAX_CYCLE}"),
        ([1.0], "1 weights for 2 sources"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights, said):
    with pytest.raises(DataError, match=said):
        make_order([np.array([3]), np.array([3])], weights, 0, 8)


@pytest.mark.parametrize("config", [TrainVaeConfig, ImageClassifier, TimmClassifier, AdaptDecoderConfig])
def test_a_number_of_weights_that_does_not_fit_the_data_sets_is_refused_with_the_config(config):
    required = {
        "vae": "v",
        "classifier": "c",
        "duration": {"images": 1},
        "perceptual": {"kind": "none"},
    }
    tree = {name: value for name, value in required.items() if name in config.model_fields}
    tree |= {"images": ["a", "b"], "reader": {"weights": [1.0]}}
    with pytest.raises(ConfigError, match=r"reader\.weights has 1 numbers for 2 data sets in images"):
        validate(config, tree, "test")
    validate(config, {**tree, "reader": {"weights": [1.0, 2.0]}}, "test")
