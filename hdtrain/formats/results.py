"""`results.json`: every measured figure with its interval, n, seeds and what it was measured with.

The report reads figures from here and from nowhere else.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.errors import ManifestError
from hdtrain.formats.atomic import write_json

RESULTS_VERSION = 1
CANDIDATES = "candidates"
"""Name of the image set that is the whole pool before selection."""
YARDSTICK = "real test images"
"""Name of the image set that shows what the image metrics say about images that are beyond doubt."""


class Metric(Config):
    """One figure. `interval` is 95 %; `method` says how it came about."""

    value: float
    interval: tuple[float, float] | None = None
    n: int
    seeds: list[int] = Field(default_factory=list)
    method: str = ""


class ArmResult(Config):
    """One row of the table."""

    description: str = ""
    num_real: int
    num_synthetic: int
    steps: int
    """Optimizer steps of one training run; equal in every arm."""
    metrics: dict[str, Metric]
    """accuracy, macro_f1, weighted_f1, macro_sensitivity, weighted_sensitivity, specificity, accuracy_gain …"""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    """Class name to metric (sensitivity, f1)."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones, summed over seeds."""
    p_value: float | None = None
    """Of the gain in accuracy over the baseline, paired bootstrap, two-sided."""


class ImageSetResult(Config):
    """Image metrics of one set of synthetic images against the real training images."""

    num_images: int
    num_reference: int
    metrics: dict[str, Metric]
    """FD-ENCODER, KID-ENCODER, precision, recall, label_agreement, memorised_share …"""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)


class NearestPair(Config):
    """A synthetic image and its nearest real training image in feature space."""

    synthetic: str
    real: str
    label: str
    distance: float
    memorised: bool
    """Nearer than the real-to-real distances' 1 % quantile."""


class Results(Config):
    """The whole file."""

    version: int = RESULTS_VERSION
    classes: list[str]
    baseline: str
    arms: dict[str, ArmResult]
    colour_histogram: dict[str, Metric]
    """accuracy and macro_f1 of a classifier that sees nothing but colours."""
    image_sets: dict[str, ImageSetResult]
    nearest: list[NearestPair]
    encoder: dict[str, Any]
    """name, weights (sha256), resize, resolution."""
    reference: dict[str, Any]
    """identity of the real training images' manifest, and of the test split's."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Resamples, quantiles, seeds: whatever another person needs to repeat the figures."""


def write_results(path: Path, results: Results) -> None:
    """Write atomically."""
    write_json(path, results.model_dump(mode="json"))


def read_results(path: Path) -> Results:
    """Read results of this version.

    Raises:
        ManifestError: missing or of another version.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: results cannot be read: {error}") from None
    if tree.get("version") != RESULTS_VERSION:
        raise ManifestError(f"{path}: results version {tree.get('version')}, this hdtrain reads {RESULTS_VERSION}")
    return Results.model_validate(tree)
