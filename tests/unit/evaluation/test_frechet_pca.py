"""Small classes can be measured: what chance gives stands beside the distance, and real differences exceed it."""

import numpy as np
import pytest
from scipy.stats import kstest

from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.frechet_pca import PrincipalComponents, distance_and_chance
from hdtrain.evaluation.moments import Moments


def _features(n, seed, shift=0.0):
    mixing = np.random.default_rng(9).standard_normal((64, 64)) * np.linspace(2, 0.05, 64)[:, None]
    return (np.random.default_rng(seed).standard_normal((n, 64)) @ mixing + shift).astype(np.float32)


def test_components_are_those_of_a_singular_value_decomposition():
    x = _features(200, 0)
    found = PrincipalComponents.fit(Moments.of(x), smallest_class=20)
    assert found.count == 8
    centred = x.astype(float) - x.astype(float).mean(0)
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.directions.T @ directions[:8].T), np.eye(8), atol=1e-6)
    assert found.explained == pytest.approx((scale[:8] ** 2).sum() / (scale**2).sum())
    assert found.project(x).var(axis=0).sum() == pytest.approx(found.explained * centred.var(axis=0).sum())


@pytest.mark.parametrize(("smallest", "count"), [(3, None), (4, 2), (31, 8), (32, 16), (5000, 64)])
def test_the_smallest_class_says_how_many_components(smallest, count):
    found = PrincipalComponents.fit(Moments.of(_features(200, 0)), smallest)
    assert (found and found.count) == count


def test_images_of_one_distribution_lie_within_chance_and_shifted_ones_do_not():
    components = PrincipalComponents.fit(Moments.of(_features(400, 0)), 16)

    def projected(*args):
        return Moments.of(components.project(_features(*args)))

    real = projected(30, 1)
    inside = 0
    for seed in range(2, 22):
        value, chance = distance_and_chance(projected(20, seed), real, seed=0)
        low, high = np.quantile(chance, [0.025, 0.975])
        inside += low <= value <= high
    assert inside >= 15
    shifted, chance = distance_and_chance(projected(20, 2, 20.0), real, seed=0)
    assert shifted > np.quantile(chance, 0.975)
    assert distance_and_chance(real, real, 0)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [9, 40])
def test_chance_is_what_samples_of_the_real_images_gaussian_show(n):
    """Drawn as sums alone, and image by image: the same distribution."""
    components = PrincipalComponents.fit(Moments.of(_features(400, 0)), 16)
    real, ours = (Moments.of(components.project(_features(*args))) for args in ((60, 1), (n, 2)))
    found = np.concatenate([distance_and_chance(ours, real, s)[1] for s in range(8)])
    root, rng = np.linalg.cholesky(real.covariance), np.random.default_rng(5)

    def images(count):
        return Moments.of(rng.standard_normal((count, components.count)) @ root.T)

    drawn = [frechet_distance(images(n), images(real.n)) for _ in range(400)]
    assert kstest(found, drawn).pvalue > 0.01
    assert found.mean() == pytest.approx(np.mean(drawn), rel=0.1)


def test_sums_of_a_class_and_of_all_come_from_one_pass_over_the_parts():
    x, labels = _features(50, 3), np.arange(50) % 3
    components = PrincipalComponents.fit(Moments.of(x), 16)
    parts = zip(np.split(x, [10, 10, 37]), np.split(labels, [10, 10, 37]), strict=True)
    everything, *classes = components.moments(parts, 3)
    for found, rows in ((everything, x), *((classes[k], x[labels == k]) for k in range(3))):
        expected = Moments.of(components.project(rows))
        assert found.n == expected.n
        np.testing.assert_allclose(found.outer, expected.outer, rtol=1e-10, atol=1e-9)
