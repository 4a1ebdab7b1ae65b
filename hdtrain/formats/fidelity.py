"""`results.json` of `evaluate-fidelity`."""

from typing import Any

from pydantic import Field

from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import VersionedFile


class Fidelity(VersionedFile):
    """The whole file."""

    STAGE = "evaluate-fidelity"
    version: int = 1
    num_images: int
    num_sources: int
    num_candidates: int
    """Embeddings among which the source was looked for, itself included."""
    metrics: dict[str, Metric]
    """cosine, cosine_to_others, rank_percentile, top_1, top_1_percent, same_class_nearest."""
    chance: dict[str, float]
    """What a guess would give, for the metrics where that is known."""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    encoder: dict[str, Any]
    images: str
    """Identity of the images."""
    asked: str
    """Identity of the embeddings that they were made from."""
    protocol: dict[str, Any] = Field(default_factory=dict)
