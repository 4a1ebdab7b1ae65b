"""`results.json` of `evaluate-slides`."""

from typing import Any

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import VersionedFile


class SlideArm(Config):
    """One row of the table."""

    description: str = ""
    num_real: int
    num_synthetic: int
    metrics: dict[str, Metric]
    """accuracy, macro_f1; but for the baseline accuracy_gain over it."""
    p_value: float | None = None
    """Of the gain, paired bootstrap, two-sided."""


class SlideResults(VersionedFile):
    """The whole file."""

    STAGE = "evaluate-slides"
    version: int = 1
    classes: list[str]
    baseline: str
    num_test: int
    arms: dict[str, SlideArm]
    predictions: dict[str, dict[str, list[list[float]]]] = Field(default_factory=dict)
    """Arm to bag to the probabilities that each seed's classifier gave the classes."""
    encoder_hash: str | None
    protocol: dict[str, Any] = Field(default_factory=dict)
