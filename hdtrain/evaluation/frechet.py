"""Fréchet distance of two Gaussians: ‖μ₁−μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Heusel et al. 2017).

With Σ₁ = LLᵀ the eigenvalues of Σ₁Σ₂ are those of the symmetric LᵀΣ₂L, so no matrix square root is needed.
"""

import numpy as np
from jaxtyping import Float, Float64

from hdtrain.evaluation.moments import Moments

EXTRAPOLATION_SIZES = 15


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance, in fp64; each set needs two samples or more."""
    difference = a.mean - b.mean
    first, second = a.covariance, b.covariance
    factor = _factor(first, full_rank=a.n > len(first))
    eigenvalues = np.linalg.eigvalsh(factor.T @ second @ factor)
    trace = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * trace)


def frechet_distance_infinity(
    features: Float[np.ndarray, "n d"], reference: Moments, seed: int, sizes: int = EXTRAPOLATION_SIZES
) -> float:
    """FD∞ (Chong & Forsyth 2020): the line of FD over 1/N, fitted at `sizes` subset sizes from n/2 to n, at 1/N = 0."""
    rng = np.random.default_rng(seed)
    counts = np.linspace(len(features) / 2, len(features), sizes).astype(int)
    distances = [
        frechet_distance(Moments.of(features[rng.permutation(len(features))[:count]]), reference) for count in counts
    ]
    _, intercept = np.polyfit(1 / counts, distances, 1)
    return float(intercept)


def _factor(covariance: Float64[np.ndarray, "d d"], full_rank: bool) -> Float64[np.ndarray, "d d"]:
    """L with LLᵀ = Σ: Cholesky, or from the eigenvectors where Σ is rank-deficient, which needs no jitter."""
    if full_rank:
        try:
            return np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:  # constant or duplicate features: singular although n > d
            pass
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(eigenvalues, 0)))
