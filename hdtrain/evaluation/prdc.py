"""Precision, recall (Kynkäänniemi et al. 2019, k = 3), density, coverage (Naeem et al. 2020, k = 5), blockwise."""

import numpy as np
from jaxtyping import Float

from hdtrain.features.neighbours import BLOCK, kth_nearest_radius, squared_distances

K_PRECISION_RECALL = 3
K_DENSITY_COVERAGE = 5
MAX_IMAGES = 10_000


def subsample(features: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "m d"]:
    """At most `MAX_IMAGES` rows, drawn without replacement."""
    if len(features) <= MAX_IMAGES:
        return features
    return features[np.sort(np.random.default_rng(seed).choice(len(features), MAX_IMAGES, replace=False))]


def prdc(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"]) -> dict[str, float]:
    """`precision`, `recall`, `density`, `coverage`; each set needs more than `K_DENSITY_COVERAGE` images.

    A ball is centred on an image and reaches to its k-th nearest other image of the same set.
    """
    real_3, real_5 = (kth_nearest_radius(real, k) for k in (K_PRECISION_RECALL, K_DENSITY_COVERAGE))
    synthetic_3 = kth_nearest_radius(synthetic, K_PRECISION_RECALL)
    in_real, in_synthetic = np.zeros(len(synthetic), bool), np.zeros(len(real), bool)
    balls_hit, covered = 0, np.zeros(len(real), bool)
    for first in range(0, len(synthetic), BLOCK):
        part = slice(first, first + BLOCK)
        distances = np.sqrt(squared_distances(synthetic[part], real))
        in_real[part] = (distances <= real_3).any(axis=1)
        in_synthetic |= (distances <= synthetic_3[part, None]).any(axis=0)
        hits = distances <= real_5
        balls_hit += int(hits.sum())
        covered |= hits.any(axis=0)
    return {
        "precision": float(in_real.mean()),
        "recall": float(in_synthetic.mean()),
        "density": balls_hit / (K_DENSITY_COVERAGE * len(synthetic)),
        "coverage": float(covered.mean()),
    }
