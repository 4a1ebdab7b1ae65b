"""Gates: who falls at which, in which order, and that no order or grouping of the candidates matters."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.config.synthesis import GateConfig
from hdtrain.selection.gate_a import entropy, uniforms
from hdtrain.selection.gates import GATES, PASSES, Evidence, fell_at

NUM_CLASSES = 3
OPEN = {"nearest_centroid": False}


def evidence(n=60, seed=0) -> Evidence:
    rng = np.random.default_rng(seed)
    return Evidence(
        keys=np.array([f"k{i:03d}" for i in range(n)]),
        labels=np.arange(n) % NUM_CLASSES,
        target_distance=np.round(rng.random(n), 1),  # one decimal: plenty of ties
        nearest_class=rng.integers(0, NUM_CLASSES, n),
        confidence=rng.random(n),
        predicted_class=rng.integers(0, NUM_CLASSES, n),
        entropy=rng.random(n),
    )


def rearranged(seen: Evidence, order: np.ndarray) -> Evidence:
    return Evidence(**{name: column[order] for name, column in vars(seen).items()})


def names(config: GateConfig, seen: Evidence) -> list[str]:
    return ["passes" if gate == PASSES else GATES[gate] for gate in fell_at(config, seen)]


def test_each_gate_lets_through_what_its_rule_says():
    seen = evidence()
    passing = lambda config: [name == "passes" for name in names(config, seen)]  # noqa: E731
    assert passing(GateConfig(**OPEN)) == [True] * 60
    assert passing(GateConfig()) == (seen.nearest_class == seen.labels).tolist()
    assert passing(GateConfig(confidence=0.6, **OPEN)) == (seen.confidence >= 0.6).tolist()
    sure = (seen.entropy <= 0.5) & (seen.predicted_class == seen.labels)
    assert 0 < sure.sum() < (seen.entropy <= 0.5).sum()
    assert passing(GateConfig(entropy=0.5, **OPEN)) == sure.tolist()


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_candidate_falls_at_the_same_gate_in_whatever_order_they_come(seed):
    config = GateConfig(confidence=0.2, entropy=0.8, closer_half=True)
    seen = evidence()
    order = np.random.default_rng(seed).permutation(60)
    assert fell_at(config, rearranged(seen, order)).tolist() == fell_at(config, seen)[order].tolist()


def test_whoever_fails_several_gates_is_counted_at_the_first():
    seen = evidence(9)
    config = GateConfig(confidence=1.0, entropy=1e-6, closer_half=True)
    assert set(names(config, seen)) == {"confidence"}
    assert set(names(config.model_copy(update={"confidence": None}), seen)) == {"entropy"}


@given(st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_closer_half_is_the_nearer_and_larger_half_of_those_that_pass_the_other_gates(per_class, seed):
    seen = evidence(per_class * NUM_CLASSES, seed)
    before = np.array([name == "passes" for name in names(GateConfig(), seen)])
    after = names(GateConfig(closer_half=True), seen)
    for label in range(NUM_CLASSES):
        rows = [row for row in np.flatnonzero(before) if seen.labels[row] == label]
        ranked = sorted(rows, key=lambda row: (seen.target_distance[row], seen.keys[row]))
        assert [row for row in ranked if after[row] == "passes"] == ranked[: math.ceil(len(ranked) / 2)]
        assert all(after[row] == "closer_half" for row in ranked[math.ceil(len(ranked) / 2) :])


def test_entropy_is_in_nats():
    assert entropy(np.array([[1.0, 0.0, 0.0]])) == pytest.approx([0])
    assert entropy(np.full((1, 3), 1 / 3)) == pytest.approx([math.log(3)])
    assert entropy(np.array([[0.9, 0.1]])) == pytest.approx([-0.9 * math.log(0.9) - 0.1 * math.log(0.1)])


def test_dropout_is_drawn_by_seed_key_and_pass_and_not_by_who_shares_the_batch():
    together = uniforms(0, ["a", "b", "c"], 4, 50)
    np.testing.assert_array_equal(uniforms(0, ["c"], 4, 50)[0], together[2])
    np.testing.assert_array_equal(uniforms(0, ["b", "a"], 9, 50)[1, :4], together[0])
    drawn = [together[0, 0], together[0, 1], together[1, 0], uniforms(1, ["a"], 4, 50)[0, 0]]
    assert len({row.tobytes() for row in drawn}) == 4
    many = uniforms(0, ["a"], 100, 100)
    assert (many.min() >= 0, many.max() < 1) == (True, True)
    assert (many < 0.3).mean() == pytest.approx(0.3, abs=0.02)
