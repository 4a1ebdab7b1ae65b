"""`sweep.json`: what images look like at every guidance scale, the scale that was chosen, and by whom."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.atomic import write_json
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import read_versioned

SWEEP_VERSION = 1
AGREEMENT = "label_agreement"
DIVERSITY = "diversity"
FRECHET = "FD-"
"""Followed by the encoder's name."""


class ScaleResult(Config):
    """The images of one guidance scale."""

    guidance: float
    num_images: int
    metrics: dict[str, Metric]
    """label_agreement, FD-ENCODER, diversity, precision, recall, density, coverage."""
    per_class: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    """Class name to label_agreement and diversity."""


class SweepResults(Config):
    """The whole file."""

    version: int = SWEEP_VERSION
    classes: list[str]
    scales: list[ScaleResult]
    """By rising guidance."""
    choice: float
    chosen_by: Literal["rule", "user"]
    rule_choice: float
    """What the rule says, whoever chose."""
    reason: str
    """Why, in words."""
    tolerance: float
    """The rule's."""
    real: dict[str, Metric]
    """label_agreement of the judge on the real images, where it can be taken for a ceiling."""
    encoder: dict[str, Any]
    """name, weights (sha256), resize, resolution."""
    reference: dict[str, str]
    """Identities of the judge's manifest and of the real images'."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Solver, images a class, seed: whatever another person needs to repeat the figures."""

    @property
    def frechet(self) -> str:
        """Key of the Fréchet distance."""
        return f"{FRECHET}{self.encoder['name']}"

    @property
    def chosen(self) -> ScaleResult:
        """The scale that was chosen."""
        return next(scale for scale in self.scales if scale.guidance == self.choice)


def write_sweep(path: Path, sweep: SweepResults) -> None:
    """Write atomically."""
    write_json(path, sweep.model_dump(mode="json"))


def read_sweep(path: Path) -> SweepResults:
    """Read a sweep of this version.

    Raises:
        ManifestError: missing or of another version.
    """
    return read_versioned(path, SweepResults, SWEEP_VERSION, "sweep", "sweep-guidance")
