"""The difference of two Fréchet distances from the same noise: its interval holds what it says, and costs little."""

import numpy as np
import pytest

from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.paired_frechet import Distances

DIM, IMAGES, GROUPS = 4, 200, 10


def groups_of(features: np.ndarray) -> list[Moments]:
    parts = (features[group::GROUPS] for group in range(GROUPS))
    return [Moments(len(part), part.sum(0), part.T @ part) for part in parts]


@pytest.fixture(scope="module")
def real() -> Moments:
    return Moments.of(np.random.default_rng(1).normal(size=(500, DIM)))


def test_the_distances_are_those_of_the_images_that_are_left(real):
    features = np.random.default_rng(2).normal(0.5, 1.2, size=(IMAGES, DIM))
    told = []
    found = Distances.of(groups_of(features), real, lambda: told.append(1))
    assert found.whole == pytest.approx(frechet_distance(Moments.of(features), real), rel=1e-9)
    kept = np.delete(features, np.arange(IMAGES)[3::GROUPS], axis=0)
    assert found.without[3] == pytest.approx(frechet_distance(Moments.of(kept), real), rel=1e-9)
    assert len(told) == GROUPS + 1


def test_the_same_images_differ_by_nothing_at_all(real):
    features = np.random.default_rng(2).normal(size=(IMAGES, DIM))
    distances = [Distances.of(groups_of(features.copy()), real) for _ in range(2)]
    assert distances[0].difference(distances[1]) == (0.0, (0.0, 0.0))


def test_nineteen_of_twenty_intervals_hold_the_difference_and_pairing_makes_them_narrow(real):
    """The truth is the mean over all repetitions; the noise of the two sets is the same but for a tenth."""
    rng = np.random.default_rng(3)
    found, alone = [], []
    for _ in range(150):
        noise = rng.normal(size=(IMAGES, DIM))
        first = Distances.of(groups_of(0.3 + noise), real)
        second = Distances.of(groups_of(0.35 + 1.1 * noise + 0.1 * rng.normal(size=noise.shape)), real)
        found.append(second.difference(first))
        alone.append(second.whole)
    truth = np.mean([value for value, _ in found])
    held = np.mean([low <= truth <= high for _, (low, high) in found])
    assert 0.9 <= held <= 0.99
    half = np.median([(high - low) / 2 for _, (low, high) in found])
    assert half == pytest.approx(2.26 * np.std([value for value, _ in found]), rel=0.15)  # Student's t at 9
    assert half < 0.75 * 2.26 * np.std(alone)
