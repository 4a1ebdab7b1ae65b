"""The profiles of the moving averages, and averages of other lengths made from the stored ones afterwards."""

import numpy as np
import pytest

from hdtrain.models.ema import POST_HOC_STDS, Exponential, PowerFunction, Profile, combine


def averaged(profile: Profile, weights: np.ndarray) -> np.ndarray:
    """The average after every update, by the definition."""
    average, found = weights[0], []
    for update, value in enumerate(weights, 1):
        average = profile.beta(update) * average + (1 - profile.beta(update)) * value
        found.append(average)
    return np.array(found)


def random_walk(steps: int) -> np.ndarray:
    """Weights that wander and settle, as in training: (steps, 50)."""
    rng = np.random.default_rng(0)
    return np.cumsum(rng.normal(size=(steps, 50)) / np.arange(10, steps + 10)[:, None] ** 0.7, axis=0)


def test_warm_up_then_the_decay_itself():
    assert [Exponential(0.8).beta(n) for n in (1, 2, 10)] == [1 / 10, 2 / 11, 10 / 19]
    assert [Exponential(0.8).beta(n) for n in (36, 37, 10**6)] == [0.8, 0.8, 0.8]


@pytest.mark.parametrize("std", [0.02, 0.05, 0.10, 0.2])
def test_the_relative_width_of_a_power_function_is_what_it_is_called(std):
    gamma, t = PowerFunction(std).gamma, np.linspace(0, 1, 200_001)
    density = (gamma + 1) * t**gamma
    mean = np.trapezoid(density * t, t)
    assert np.sqrt(np.trapezoid(density * (t - mean) ** 2, t)) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.07, 0.10, 0.15, 0.20])
def test_an_average_of_any_length_is_rebuilt_from_the_two_that_were_kept(std):
    steps, count = 4000, 16
    weights = random_walk(steps)
    stored = {width: averaged(PowerFunction(width), weights) for width in POST_HOC_STDS}
    snapshots = [(steps * (i + 1) // count, width) for i in range(count) for width in POST_HOC_STDS]
    factors = combine(snapshots, steps, std)
    rebuilt = sum(f * stored[width][update - 1] for f, (update, width) in zip(factors, snapshots, strict=True))
    wanted = averaged(PowerFunction(std), weights)[-1]
    error = np.linalg.norm(rebuilt - wanted) / np.linalg.norm(wanted - weights[-1])
    nearest = min(
        np.linalg.norm(stored[width][-1] - wanted) / np.linalg.norm(wanted - weights[-1]) for width in POST_HOC_STDS
    )
    assert error < (1e-3 if std in POST_HOC_STDS else 0.05)
    assert std in POST_HOC_STDS or error < nearest / 5
    assert factors.sum() == pytest.approx(1, abs=1e-9)
