"""Every image metric against an independent implementation."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torchmetrics.image.kid import poly_mmd

from hdtrain.evaluation.frechet import frechet_distance, frechet_distance_infinity
from hdtrain.evaluation.kid import kernel_distances, polynomial_mmd
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import prdc


def _features(n, d, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * 0.3 + shift).astype(np.float32)


def test_moments_do_not_depend_on_how_they_were_sharded():
    x = _features(500, 12)
    merged = Moments.merged([Moments.of(part) for part in np.split(x, [3, 100, 480])], 12)
    np.testing.assert_allclose(merged.mean, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x.astype(float), rowvar=False), rtol=1e-9, atol=1e-12)


def test_frechet_distance_agrees_with_sqrtm_and_torch_fidelity():
    a, b = Moments.of(_features(400, 24)), Moments.of(_features(300, 24, 0.5, 1))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    stats = [{"mu": m.mean, "sigma": m.covariance} for m in (a, b)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-9)


def test_frechet_distance_of_rank_deficient_sets():
    """Fewer images than dimensions: still symmetric, zero to itself, and what eigenvalues of the product say."""
    a, b = Moments.of(_features(10, 40)), Moments.of(_features(15, 40, 0.2, 1))
    eigenvalues = np.linalg.eigvals(a.covariance @ b.covariance).astype(complex)
    trace = np.sqrt(np.where(np.abs(eigenvalues) < 1e-12, 0, eigenvalues)).real.sum()
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_extrapolation_removes_the_bias_of_small_sets():
    reference = Moments.of(_features(20_000, 8))
    same = _features(20_000, 8)[:300]
    assert abs(frechet_distance_infinity(same, reference, 0)) < frechet_distance(Moments.of(same), reference)


def test_kid_agrees_with_torchmetrics():
    x, y = _features(50, 16), _features(50, 16, 0.3, 1)
    theirs = float(poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double()))
    assert polynomial_mmd(x, y) == pytest.approx(theirs, rel=1e-9)


def test_kid_is_unbiased_and_repeatable():
    x, y = _features(400, 16)[:200], _features(400, 16)[200:]
    values = kernel_distances(x, y, 100, seed=0)
    assert abs(values.mean()) < 0.2 * kernel_distances(x, y + 0.5, 100, seed=0).mean()
    assert np.array_equal(values, kernel_distances(x, y, 100, seed=0))


def _brute_force_prdc(real, synthetic):
    def distance(a, b):
        return float(np.linalg.norm(a.astype(float) - b.astype(float)))

    def radius(points, i, k):
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    n, m = len(real), len(synthetic)
    r3, r5 = ([radius(real, i, k) for i in range(n)] for k in (3, 5))
    s3 = [radius(synthetic, j, 3) for j in range(m)]
    d = [[distance(r, s) for s in synthetic] for r in real]
    return {
        "precision": sum(any(d[i][j] <= r3[i] for i in range(n)) for j in range(m)) / m,
        "recall": sum(any(d[i][j] <= s3[j] for j in range(m)) for i in range(n)) / n,
        "density": sum(d[i][j] <= r5[i] for i in range(n) for j in range(m)) / (5 * m),
        "coverage": sum(any(d[i][j] <= r5[i] for j in range(m)) for i in range(n)) / n,
    }


@pytest.mark.parametrize("block", [7, 1024])
def test_prdc_agrees_with_brute_force_in_any_block_size(monkeypatch, block):
    monkeypatch.setattr("hdtrain.features.neighbours.BLOCK", block)
    monkeypatch.setattr("hdtrain.evaluation.prdc.BLOCK", block)
    real, synthetic = _features(40, 4), _features(30, 4, 0.5, 1)
    expected = _brute_force_prdc(real, synthetic)
    assert 0 < expected["precision"] < 1
    assert prdc(real, synthetic) == pytest.approx(expected)
