"""`results.json` of `evaluate-slides`."""

from pathlib import Path
from typing import Any

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.atomic import write_json
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import read_versioned

SLIDE_RESULTS_VERSION = 1


class SlideArm(Config):
    """One row of the table."""

    description: str = ""
    num_real: int
    num_synthetic: int
    metrics: dict[str, Metric]
    """accuracy, macro_f1; but for the baseline accuracy_gain over it."""
    p_value: float | None = None
    """Of the gain, paired bootstrap, two-sided."""


class SlideResults(Config):
    """The whole file."""

    version: int = SLIDE_RESULTS_VERSION
    classes: list[str]
    baseline: str
    num_test: int
    arms: dict[str, SlideArm]
    predictions: dict[str, dict[str, list[list[float]]]] = Field(default_factory=dict)
    """Arm to bag to the probabilities that each seed's classifier gave the classes."""
    encoder_hash: str | None
    protocol: dict[str, Any] = Field(default_factory=dict)


def write_slide_results(path: Path, results: SlideResults) -> None:
    """Write atomically."""
    write_json(path, results.model_dump(mode="json"))


def read_slide_results(path: Path) -> SlideResults:
    """Read the figures of this version.

    Raises:
        ManifestError: missing or of another version.
    """
    return read_versioned(path, SlideResults, SLIDE_RESULTS_VERSION, "results", "evaluate-slides")
