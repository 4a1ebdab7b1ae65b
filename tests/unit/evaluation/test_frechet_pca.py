"""Small classes can be measured: what chance gives stands beside the distance, and real differences exceed it."""

import numpy as np
import pytest

from hdtrain.evaluation.frechet_pca import PrincipalComponents, distance_and_chance


def _features(n, seed, shift=0.0):
    mixing = np.random.default_rng(9).standard_normal((64, 64)) * np.linspace(2, 0.05, 64)[:, None]
    return (np.random.default_rng(seed).standard_normal((n, 64)) @ mixing + shift).astype(np.float32)


def test_components_are_those_of_a_singular_value_decomposition():
    x = _features(200, 0)
    found = PrincipalComponents.fit(x, smallest_class=20)
    assert found.count == 8
    centred = x.astype(float) - x.astype(float).mean(0)
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.directions.T @ directions[:8].T), np.eye(8), atol=1e-6)
    assert found.explained == pytest.approx((scale[:8] ** 2).sum() / (scale**2).sum())
    assert found.project(x).var(axis=0).sum() == pytest.approx(found.explained * centred.var(axis=0).sum())


@pytest.mark.parametrize(("smallest", "count"), [(3, None), (4, 2), (31, 8), (32, 16), (5000, 64)])
def test_the_smallest_class_says_how_many_components(smallest, count):
    found = PrincipalComponents.fit(_features(200, 0), smallest)
    assert (found and found.count) == count


def test_images_of_one_distribution_lie_within_chance_and_shifted_ones_do_not():
    components = PrincipalComponents.fit(_features(400, 0), 16)
    real = components.project(_features(30, 1))
    inside = 0
    for seed in range(2, 22):
        value, chance = distance_and_chance(components.project(_features(20, seed)), real, seed=0)
        low, high = np.quantile(chance, [0.025, 0.975])
        inside += low <= value <= high
    assert inside >= 15
    shifted, chance = distance_and_chance(components.project(_features(20, 2, shift=12.0)), real, seed=0)
    assert shifted > np.quantile(chance, 0.975)
    assert distance_and_chance(real, real, 0)[0] == pytest.approx(0, abs=1e-6)
