"""Configs of the stages from models to an answer: `sample`, `select`, `evaluate`, `report`."""

from typing import Literal

from pydantic import Field, model_validator

from hdtrain.config.base import (
    AutoencoderParent,
    ClassifierParent,
    Config,
    DenoiserParent,
    EvaluationParent,
    ImagesParent,
    SelectionParent,
)
from hdtrain.config.training import EncoderConfig


class SolverConfig(Config):
    """DDIM (Song et al. 2021): timesteps 1, 1+T/S, …; η = 0 is deterministic, η = 1 as noisy as DDPM.

    Under a schedule with zero terminal SNR the timesteps are T/S−1, 2T/S−1, …, T−1: the last of training comes first.
    """

    kind: Literal["ddim"] = "ddim"
    steps: int = Field(200, ge=1)
    """Must divide the denoiser's training timesteps: 20, 25, 40, 50, 100, 125, 200, 250 or 500 of 1000."""
    eta: float = Field(0.0, ge=0, le=1)


class SampleConfig(Config):
    """Classifier-guided mass generation: `hdtrain sample`. Image i is a function of (seed, i) alone."""

    denoiser: DenoiserParent
    decoder: AutoencoderParent | None = None
    """D′ (or the plain autoencoder, for the ablation); None for a denoiser that was trained on pixels."""
    classifier: ClassifierParent | None = None
    """ϕ; None samples without guidance and without labels."""
    guidance: float = Field(1.0, ge=0)
    per_class: int = Field(ge=1)
    """Images a class; without a classifier, images in all."""
    solver: SolverConfig = SolverConfig()
    samples_per_shard: int = Field(256, ge=1)
    batch_size: int = Field(32, ge=1)
    clip_latents: float | None = Field(None, gt=0)
    """Clamp the predicted scaled ẑ₀ (unit standard deviation; pixels: 1) to ± this; None: no clamp, as published."""
    seed: int = Field(0, ge=0)


class GateConfig(Config):
    """Which candidates may be selected at all."""

    confidence: float | None = Field(None, ge=0, le=1)
    """Gate A: softmax of the target class under `classifier` at least this; None switches it off."""
    nearest_centroid: bool = True
    """Gate B: the nearest centroid is the target class's."""


class SelectConfig(Config):
    """Keep, per class, the candidates nearest to their class's centroid: `hdtrain select`."""

    real: list[ImagesParent] = Field(min_length=1)
    """The real training images: they alone make the centroids."""
    candidates: list[ImagesParent] = Field(min_length=1)
    encoder: EncoderConfig
    classifier: ClassifierParent | None = None
    """φ, for gate A."""
    gates: GateConfig = GateConfig()
    ratios: list[float] = Field([0.5, 1.0], min_length=1)
    """Selected images a class, as a multiple of the real ones: each makes `selective-R` and `random-R`."""
    shortfall: Literal["stop", "fill"] = "fill"
    """Fewer candidates than asked pass the gates: `stop` with the counts, or `fill` with the nearest of the others."""
    batch_size: int = Field(64, ge=1)
    resolution: int = Field(256, ge=8)
    seed: int = Field(0, ge=0)

    @property
    def data_sets(self) -> list[str]:
        """Every ratio, selected and drawn at random."""
        return [f"{rule}-{ratio:g}" for ratio in self.ratios for rule in ("selective", "random")]

    @model_validator(mode="after")
    def _gate_a_needs_classifier(self) -> "SelectConfig":
        if self.gates.confidence is not None and self.classifier is None:
            raise ValueError("gates.confidence needs 'classifier' (φ)")
        if any(ratio <= 0 for ratio in self.ratios):
            raise ValueError("ratios must be greater than 0")
        return self


class ArmConfig(Config):
    """One row of the table: a downstream classifier, and the synthetic images that it was given, if any."""

    classifier: ClassifierParent
    synthetic: ImagesParent | None = None
    description: str = ""


class EvaluateConfig(Config):
    """Score every arm on the test split, and the images themselves: `hdtrain evaluate`."""

    test: ImagesParent
    train: ImagesParent
    """The real labelled images of the arms: reference of the image metrics, and the colour histogram's training set."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    baseline: str
    encoder: EncoderConfig
    """Image metrics are named after it (FD-…)."""
    judge: ClassifierParent | None = None
    """Says whether synthetic images look like their label; it must never have seen ϕ, φ or a synthetic image."""
    candidates: ImagesParent | None = None
    """The whole pool before selection, scored beside the arms."""
    batch_size: int = Field(64, ge=1)
    resolution: int = Field(256, ge=8)
    bootstrap_resamples: int = Field(2000, ge=100)
    kid_subset_size: int = Field(100, ge=2)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> "EvaluateConfig":
        reserved = {"candidates", "real test images"} & set(self.arms)
        if reserved:
            raise ValueError(f"arm name '{reserved.pop()}' is taken by an image set of that name; choose another")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline '{self.baseline}' is not one of the arms: {', '.join(self.arms)}")
        return self


class ReportConfig(Config):
    """One self-contained HTML file: `hdtrain report`. Its graph of stages is followed from the manifests."""

    evaluation: EvaluationParent
    selection: SelectionParent
    title: str = "hdtrain report"
    examples_per_class: int = Field(6, ge=1)
