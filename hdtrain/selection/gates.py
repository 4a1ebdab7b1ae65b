"""Which candidates may be selected at all."""

import numpy as np
from jaxtyping import Bool, Float, Int64

from hdtrain.config.synthesis import GateConfig


def passes_gates(
    config: GateConfig,
    labels: Int64[np.ndarray, " n"],
    nearest_class: Int64[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"] | None,
) -> Bool[np.ndarray, " n"]:
    """Gate A: softmax of the target class at least `config.confidence`; gate B: its centroid is the nearest one."""
    passes = np.ones(len(labels), bool)
    if config.confidence is not None:
        assert confidence is not None, "the schema asks for a classifier with gate A"
        passes &= confidence >= config.confidence
    if config.nearest_centroid:
        passes &= nearest_class == labels
    return passes
