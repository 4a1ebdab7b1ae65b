"""`results.json` of `evaluate-fidelity`."""

from pathlib import Path
from typing import Any

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.atomic import write_json
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import read_versioned

FIDELITY_VERSION = 1


class Fidelity(Config):
    """The whole file."""

    version: int = FIDELITY_VERSION
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


def write_fidelity(path: Path, fidelity: Fidelity) -> None:
    """Write atomically."""
    write_json(path, fidelity.model_dump(mode="json"))


def read_fidelity(path: Path) -> Fidelity:
    """Read the figures of this version.

    Raises:
        ManifestError: missing or of another version.
    """
    return read_versioned(path, Fidelity, FIDELITY_VERSION, "results", "evaluate-fidelity")
