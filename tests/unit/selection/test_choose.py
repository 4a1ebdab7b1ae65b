"""The choice depends on the candidates alone, keeps the nearest, and says when there are too few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.errors import DataError
from hdtrain.features.centroids import Centroids, Sums
from hdtrain.selection.choose import Candidates, choose_random, choose_selective

CLASSES = ["lymph", "stroma"]


def _pool(n=40, seed=0):
    rng = np.random.default_rng(seed)
    keys = np.array([f"k{i:03d}" for i in range(n)])
    distance = np.round(rng.random(n), 1)  # one decimal: plenty of ties
    return Candidates(keys, np.arange(n) % 2, distance, rng.random(n) > 0.3)


def _keys(pool, choice):
    return sorted(pool.keys[choice.rows].tolist())


@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 1.5]))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_candidates_does_not_matter(seed, ratio):
    pool = _pool()
    order = np.random.default_rng(seed).permutation(len(pool.keys))
    shuffled = Candidates(pool.keys[order], pool.labels[order], pool.target_distance[order], pool.passes[order])
    for choose in (
        lambda p: choose_selective(p, CLASSES, [8, 10], ratio, "fill"),
        lambda p: choose_random(p, CLASSES, [8, 10], ratio, 3),
    ):
        assert _keys(pool, choose(pool)) == _keys(shuffled, choose(shuffled))


def test_keeps_the_nearest_that_pass_with_ties_by_key():
    pool = _pool()
    choice = choose_selective(pool, CLASSES, [8, 10], 0.5, "stop")
    for label, n in ((0, 4), (1, 5)):
        rows = [i for i in range(40) if pool.labels[i] == label and pool.passes[i]]
        expected = sorted(rows, key=lambda i: (pool.target_distance[i], pool.keys[i]))[:n]
        assert [i for i in choice.rows if pool.labels[i] == label] == expected


def test_short_fall_stops_with_counts_or_fills_with_the_nearest_others():
    keys = np.array(list("abcdef"))
    distance = np.array([0.3, 0.1, 0.2, 0.6, 0.5, 0.4])
    pool = Candidates(keys, np.array([0, 0, 0, 1, 1, 1]), distance, np.array([1, 0, 0, 1, 1, 1], bool))
    with pytest.raises(DataError, match="lymph: 1 of 2 pass"):
        choose_selective(pool, CLASSES, [2, 2], 1, "stop")
    filled = choose_selective(pool, CLASSES, [2, 2], 1, "fill")
    assert keys[filled.rows].tolist() == ["a", "b", "f", "e"]
    assert filled.shortfall == {"lymph": 1, "stroma": 0}


@pytest.mark.parametrize("choose", [choose_selective, choose_random])
def test_a_pool_that_is_too_small_is_refused_with_the_counts(choose):
    with pytest.raises(DataError, match="lymph: 20 candidates, 30 wanted"):
        choose(_pool(), CLASSES, [15, 5], 2, "fill" if choose is choose_selective else 0)


def test_random_ignores_gates_and_is_uniform():
    pool = _pool(20)
    drawn = np.zeros(20)
    for seed in range(400):
        rows = choose_random(pool, CLASSES, [5, 5], 1, seed).rows
        assert len(set(rows.tolist())) == 10
        drawn[rows] += 1
    assert drawn.min() > 150
    assert drawn.max() < 250
    small, large = (set(choose_random(pool, CLASSES, [8, 8], ratio, 0).rows.tolist()) for ratio in (0.5, 1))
    assert small < large


def test_centroids_are_means_of_unit_vectors():
    features = np.array([[2.0, 0.0], [0.0, 8.0], [0.0, 1.0], [3.0, 3.0]])
    labels = np.array([0, 1, 1, -1])
    shards = [Sums.of(features[part], labels[part], 2) for part in (slice(0, 2), slice(2, 2), slice(2, 4))]
    centroids = Centroids.of(shards, 2, 2)
    np.testing.assert_allclose(centroids.means, [[1, 0], [0, 1]])
    assert centroids.counts.tolist() == [1, 2]
    distances = centroids.distances(np.array([[5.0, 0.1], [0.1, 5.0]]))
    np.testing.assert_allclose(distances[0, 1], 2 * (1 - 0.1 / np.hypot(5, 0.1)))


def test_a_class_without_real_images_is_named():
    with pytest.raises(DataError, match="stroma"):
        Centroids.of([Sums.of(np.ones((2, 3)), np.array([0, 0]), 2)], 2, 3).check(CLASSES)
