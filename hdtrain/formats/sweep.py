"""`sweep.json`: what images look like at every guidance scale, the scale that was chosen, and by whom."""

from typing import Any, Literal

from pydantic import Field

from hdtrain.config.base import Config
from hdtrain.formats.results import Metric
from hdtrain.formats.versioned import VersionedFile

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


class SweepResults(VersionedFile):
    """The whole file."""

    STAGE = "sweep-guidance"
    WHAT = "sweep"
    version: int = 1
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
