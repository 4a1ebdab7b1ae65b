"""Kernel distance (Bińkowski et al. 2018): unbiased squared MMD with the kernel (x·y/d + 1)³, averaged over subsets."""

import numpy as np
from jaxtyping import Float, Float64

NUM_SUBSETS = 100


def polynomial_mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared MMD of two equally large sets; may be slightly negative."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    m = len(x)
    within = [_kernel(z, z) for z in (x, y)]
    same = sum(k.sum() - np.trace(k) for k in within) / (m * (m - 1))
    return float(same - 2 * _kernel(x, y).mean())


def kernel_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], subset_size: int, seed: int, subsets: int = NUM_SUBSETS
) -> Float64[np.ndarray, " subsets"]:
    """One MMD a subset of `subset_size` drawn from each set without replacement; their mean is the KID."""
    rng = np.random.default_rng(seed)
    return np.array(
        [
            polynomial_mmd(
                x[rng.choice(len(x), subset_size, replace=False)], y[rng.choice(len(y), subset_size, replace=False)]
            )
            for _ in range(subsets)
        ]
    )


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)
