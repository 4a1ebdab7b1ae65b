"""Which candidates may be selected at all: gate A (φ sees the class), gate B (nearest centroid), the closer half."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hdtrain.config.synthesis import GateConfig

GATES = ("confidence", "entropy", "nearest_centroid", "closer_half")
"""In the order in which candidates meet them; named as in `GateConfig`."""
PASSES = -1
"""Instead of a gate's position."""


@dataclass(frozen=True)
class Evidence:
    """What the gates look at; one row a candidate, in any order. Without φ its three columns are None."""

    keys: np.ndarray
    labels: Int[np.ndarray, " n"]
    """The class that the candidate was made for."""
    target_distance: Float[np.ndarray, " n"]
    """Squared distance to the centroid of that class."""
    nearest_class: Int[np.ndarray, " n"]
    """Of which the centroid is nearest."""
    confidence: Float[np.ndarray, " n"] | None = None
    """Softmax of the target class under φ, calibrated."""
    predicted_class: Int[np.ndarray, " n"] | None = None
    """What φ takes it for; with Monte-Carlo dropout the argmax of the mean over the passes."""
    entropy: Float[np.ndarray, " n"] | None = None
    """Predictive entropy in nats, 0 to log(classes); None unless `gates.entropy` asks for it."""


def fell_at(config: GateConfig, seen: Evidence) -> Int[np.ndarray, " n"]:
    """Position in `GATES` of the first gate that a candidate fails; `PASSES` where it passes them all.

    Method, section 7. `closer_half` comes last, since it compares the candidates of a class that pass the others: of m
    it keeps the ⌈m/2⌉ nearest to the centroid, ties by key.
    """
    failed = np.zeros((len(GATES), len(seen.labels)), bool)
    if config.confidence is not None:
        assert seen.confidence is not None, "the schema asks for a classifier with gate A"
        failed[0] = seen.confidence < config.confidence
    if config.entropy is not None:
        assert seen.entropy is not None, "scored without Monte-Carlo dropout"
        failed[1] = (seen.entropy > config.entropy) | (seen.predicted_class != seen.labels)
    if config.nearest_centroid:
        failed[2] = seen.nearest_class != seen.labels
    if config.closer_half:
        remaining = ~failed.any(axis=0)
        for label in np.unique(seen.labels):
            own = np.flatnonzero(remaining & (seen.labels == label))
            order = np.lexsort((seen.keys[own], seen.target_distance[own]))
            failed[3, own[order[-(-len(own) // 2) :]]] = True
    return np.where(failed.any(axis=0), failed.argmax(axis=0), PASSES)
