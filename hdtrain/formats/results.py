"""`results.json`: every measured figure with its interval, n, seeds and what it was measured with.

The report reads figures from here and from nowhere else.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from hdtrain.config.base import Config
from hdtrain.formats.versioned import VersionedFile

CANDIDATES = "candidates"
"""Name of the image set that is the whole pool before selection."""
YARDSTICK = "real test images"
"""Name of the image set that shows what the image metrics say about images that are beyond doubt."""
TRAINING = "real training images"
"""Name of the reference among the colour statistics."""


class Metric(Config):
    """One figure. `interval` is 95 %; `method` says how it came about."""

    model_config = ConfigDict(allow_inf_nan=True)  # a figure that could not be measured

    value: float
    interval: tuple[float, float] | None = None
    n: int
    seeds: list[int] = Field(default_factory=list)
    method: str = ""


class ArmResult(Config):
    """One row of the table."""

    description: str = ""
    series: str = ""
    """Arms of one series differ in the ratio of synthetic to real images alone."""
    num_real: int
    num_synthetic: int
    steps: int
    """Optimizer steps of one training run; equal in every arm."""
    metrics: dict[str, Metric]
    """accuracy, macro_f1, weighted_f1, macro_sensitivity, weighted_sensitivity, specificity, calibration_error,
    accuracy_gain (over the baseline), accuracy_gain_over_ARM (over another arm that it should be held against)."""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    """Class name to metric (sensitivity, specificity, f1)."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones, summed over seeds."""
    p_value: float | None = None
    """Of the gain in accuracy over the baseline, paired bootstrap, two-sided."""
    p_values: dict[str, float] = Field(default_factory=dict)
    """The same of the gain over each other arm in `metrics`, by that arm's name."""


class ImageSetResult(Config):
    """Image metrics of one set of synthetic images against the real training images."""

    num_images: int
    num_reference: int
    metrics: dict[str, Metric]
    """FD-ENCODER, FDpcaN-ENCODER, KID-ENCODER, precision, recall, label_agreement, colour_ks, memorised_share (in
    features or in pixels), memorised_share_features, memorised_share_pixels …"""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)


class NearestPair(Config):
    """A synthetic image and its nearest real training image in one space."""

    synthetic: str
    real: str
    label: str
    space: Literal["features", "pixels"] = "features"
    distance: float
    """Features: Euclidean, between unit vectors; pixels: root mean square of 0..255."""
    relative: float = 1.0
    """Over the mean distance to the next nearest training images; a copy is near 0."""
    memorised: bool
    """Relatively nearer than the training images' own 0.5 % quantile."""
    quarter_turns: int = 0
    """Pixels: the real image turned so far counter-clockwise, then …"""
    mirrored: bool = False
    """… mirrored left to right lies best on the synthetic one."""


class NearestDistances(Config):
    """Relative distances to the nearest training image in one space, as the quantiles 0, 1, …, 100 %."""

    threshold: float
    real_to_real: list[float]
    """Of the training images to their nearest other one."""
    sets: dict[str, list[float]]
    """Of every image set."""


class ColourStatistic(Config):
    """One statistic of the images of one set (and class): OD or stain concentration, mean or sd over an image."""

    n: int
    mean: float
    sd: float
    """Over the images."""
    quantiles: list[float]
    """5, 25, 50, 75 and 95 %."""
    effect_size: float | None = None
    """Cohen's d from the real training images; None for those themselves, and where there are too few."""
    ks: float | None = None
    """Kolmogorov–Smirnov distance from them, 0..1."""


class Failure(Config):
    """A synthetic image that went wrong: the judge takes it for another class, or it lies far from its own."""

    synthetic: str
    label: str
    """The class that was asked for."""
    kind: Literal["judge", "far"]
    taken_for: str
    """The judge's most probable class; `far`: the class whose centroid is nearest."""
    confidence: float | None = None
    """The judge's, in `taken_for`."""
    distance: float | None = None
    """From the centroid of its own class."""


class Results(VersionedFile):
    """The whole file."""

    STAGE = "evaluate"
    version: int = 2
    classes: list[str]
    baseline: str
    arms: dict[str, ArmResult]
    colour_histogram: dict[str, Metric]
    """accuracy and macro_f1 of a classifier that sees nothing but colours."""
    image_sets: dict[str, ImageSetResult]
    nearest: list[NearestPair]
    distances: dict[str, NearestDistances] = Field(default_factory=dict)
    """By space: features, pixels."""
    colours: dict[str, dict[str, dict[str, ColourStatistic]]] = Field(default_factory=dict)
    """Set (`real training images` and every image set) to class (and `all`) to statistic."""
    failures: list[Failure] = Field(default_factory=list)
    encoder: dict[str, Any]
    """name, weights (sha256), resize, resolution."""
    reference: dict[str, Any]
    """identity of the real training images' manifest, and of the test split's."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Resamples, quantiles, seeds: whatever another person needs to repeat the figures."""
