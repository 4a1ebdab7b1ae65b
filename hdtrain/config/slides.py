"""Config of `evaluate-slides`: classifiers of whole images, trained with and without synthetic ones."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from hdtrain.config.base import Config, InputFile, Kinds

BagsParent = Annotated[Path, Kinds(("embeddings", "grids"))]
"""Every slide, or every grid, is one bag of embeddings."""


class SlideArmConfig(Config):
    """What a classifier of whole images is trained on."""

    train: list[BagsParent] = Field(min_length=1)
    synthetic: list[BagsParent] = Field([])
    description: str = ""


class MilConfig(Config):
    """Attention-based multiple-instance learning (Ilse et al. 2018), with gated attention."""

    hidden: int = Field(256, ge=2)
    attention: int = Field(128, ge=2)
    dropout: float = Field(0.25, ge=0, lt=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    steps: int = Field(2000, ge=1)
    """One bag a step, the same number in every arm; classes take turns."""
    max_instances: int = Field(4096, ge=1)
    """Of a larger bag so many embeddings are drawn in each step; a test bag is looked at whole."""


class EvaluateSlidesConfig(Config):
    """Train a classifier of whole images an arm, and score all on the same test images: `hdtrain evaluate-slides`."""

    test: list[BagsParent] = Field(min_length=1)
    arms: dict[str, SlideArmConfig] = Field(min_length=1)
    baseline: str
    labels: Annotated[Path, InputFile()] | None = None
    """A table of bag and class without a head line (`.csv`); None: the label that each bag carries."""
    mil: MilConfig = MilConfig()
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    """Trainings an arm."""
    bootstrap_resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> "EvaluateSlidesConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"baseline '{self.baseline}' is not one of the arms: {', '.join(self.arms)}")
        return self
