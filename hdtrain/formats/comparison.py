"""`results.json` of `evaluate-images`: figures of one set of images against another, and what they were made with."""

from typing import Any, Literal

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import VersionedFile

Metrics = dict[str, Metric]


class ComparedSet(Config):
    """One side of a comparison."""

    path: str
    """As it was given."""
    kind: Literal["images", "statistics", "raw", "moments"]
    """A published data set, published statistics, raw images that were packed first, or a file of mean and
    covariance alone."""
    identity: str
    """Hash of its content: of the manifest, or of the file."""
    num_images: int | None
    """None: a file of mean and covariance does not say."""
    num_kept: int = 0
    """Images whose features every figure but the Fréchet distance is taken on."""
    num_rejected: int = 0
    """Raw images that could not be used, and are left out of all figures."""
    class_counts: dict[str, int] = Field(default_factory=dict)


class NearCopy(Config):
    """An image of `fake` and the nearest one of `real`, in feature space."""

    fake: str
    real: str
    distance: float
    """Euclidean, between unit vectors."""
    relative: float
    """Over the mean distance to the next nearest; a copy is near 0."""
    memorised: bool


class Comparison(VersionedFile):
    """The whole file."""

    STAGE = "evaluate-images"
    version: int = 1
    real: ComparedSet
    fake: ComparedSet
    metrics: Metrics
    per_class: dict[str, Metrics] = Field(default_factory=dict)
    nearest: list[NearCopy] = Field(default_factory=list)
    encoder: dict[str, Any]
    """name, weights (sha256), resize, resolution, and image_resolution (null: images of their own size)."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Seed, subsets, neighbours: whatever another person needs to repeat the figures."""
    left_out: list[str] = Field(default_factory=list)
    """Figures that need more images than there are, with the number."""
    warnings: list[str] = Field(default_factory=list)
