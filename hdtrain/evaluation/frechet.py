"""Fréchet distance of two Gaussians: ‖μ₁−μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Heusel et al. 2017).

With Σ₁ = LLᵀ the eigenvalues of Σ₁Σ₂ are those of the symmetric LᵀΣ₂L, so no matrix square root is needed.
"""

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg.lapack import dsygst

from hdtrain.evaluation.moments import Moments

EXTRAPOLATION_SIZES = 15


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance, in fp64; each set needs two samples or more."""
    difference = a.mean - b.mean
    first, second = a.covariance, b.covariance
    eigenvalues = _product_eigenvalues(first, second, full_rank=a.n > len(first))
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


def _product_eigenvalues(
    first: Float64[np.ndarray, "d d"], second: Float64[np.ndarray, "d d"], full_rank: bool
) -> Float64[np.ndarray, " r"]:
    """Those of Σ₁Σ₂ that are not zero, as those of LᵀΣ₂L.

    L by Cholesky, which is triangular, so that LAPACK's sygst needs a quarter of the two products' work. Where Σ₁ is
    rank-deficient, from its eigenvectors with eigenvalues above rounding: no jitter, and a matrix of its rank.
    """
    if full_rank:
        try:
            lower = np.linalg.cholesky(first)
        except np.linalg.LinAlgError:  # constant or duplicate features: singular although n > d
            pass
        else:
            product, _ = dsygst(second, lower, itype=2, lower=1)  # its lower triangle, which eigvalsh reads
            return np.linalg.eigvalsh(product)
    eigenvalues, vectors = np.linalg.eigh(first)
    kept = eigenvalues > eigenvalues[-1] * len(first) * np.finfo(np.float64).eps
    factor = vectors[:, kept] * np.sqrt(eigenvalues[kept])
    return np.linalg.eigvalsh(factor.T @ second @ factor)
