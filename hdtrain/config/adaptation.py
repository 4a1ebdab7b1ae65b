"""Configs of the classifiers and of adaptation to a labelled set: `train-classifier`, `adapt-decoder`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from hdtrain.config.base import AutoencoderParent, ClassifierParent, Config, Kinds, LatentsParent, WeightsFile
from hdtrain.config.engine import BatchConfig, DurationConfig, EngineConfig, GuardConfig, OptimConfig
from hdtrain.config.presets import ClassifierPreset
from hdtrain.config.protocol import FollowsProtocol
from hdtrain.config.training import NoiseScheduleConfig, PerceptualConfig, ReadsImages


class ImageClassifier(ReadsImages):
    """φ: the autoencoder's encoder trunk with attention pooling, on images."""

    kind: Literal["image"] = "image"
    preset: ClassifierPreset = "lae"
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the pooled features, before the last layer: what `gates.entropy` of `select` draws its passes from."""


class LatentClassifier(Config):
    """ϕ: the same trunk on noisy latents z_t, with the timestep."""

    kind: Literal["latent"] = "latent"
    latents: LatentsParent
    preset: ClassifierPreset = "lae"
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()
    timesteps: Literal["uniform", "zero"] = "uniform"
    """`uniform`: on z_t, t ~ U{0 … T−1} (paper); `zero`: on z_0 with t = 0, and asked with t = 0 when it guides
    (released code)."""


class TimmClassifier(ReadsImages):
    """The downstream classifier: any timm model, on real images plus whatever an arm adds."""

    kind: Literal["timm"] = "timm"
    name: str = "vit_base_patch16_224"
    weights: WeightsFile | None = None
    augmented_copies: int = Field(0, ge=0)
    """Extend the data set by this many conventionally augmented copies (random resized crop, colour jitter)."""


class TrainClassifierConfig(FollowsProtocol):
    """Train φ, ϕ or the downstream classifier, once a seed: `hdtrain train-classifier`."""

    stage_name = "train-classifier"

    model: Annotated[ImageClassifier | LatentClassifier | TimmClassifier, Field(discriminator="kind")]
    batch: BatchConfig = BatchConfig(global_batch_size=64)
    optim: OptimConfig = OptimConfig(lr=5e-5)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    validation: Annotated[Path | None, Kinds(("images", "latents"))] = None
    """Labelled samples of other patients, of the same kind: images, or for ϕ latents. Never the test split."""
    validation_images: int = Field(2000, ge=1)
    """How many of them at most, the first of a fixed order."""
    validate_every_images: int | None = Field(None, ge=1)
    """How often the loss on them is measured; None: twenty times a run. It decides what `choose` can choose from."""
    choose: Literal["last", "best"] = "last"
    """Which weights are published: the last, or those with the lowest loss on `validation`."""
    patience_images: int | None = Field(None, ge=1)
    """Stop when the loss on `validation` has not fallen for so many images; None: train to the end."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected every seed once, got {value}")
        return value

    @model_validator(mode="after")
    def _something_to_choose_by(self) -> Self:
        asked = [name for name in ("choose", "patience_images") if getattr(self, name) not in ("last", None)]
        if asked and self.validation is None:
            verb = "need" if len(asked) > 1 else "needs"
            raise ValueError(f"{' and '.join(asked)} {verb} validation, a labelled set of other patients")
        return self


class AdaptDecoderConfig(ReadsImages, FollowsProtocol):
    """Fine-tune the decoder on the labelled set, with cross-entropy through φ: `hdtrain adapt-decoder`."""

    stage_name = "adapt-decoder"

    vae: AutoencoderParent
    classifier: ClassifierParent
    batch: BatchConfig = BatchConfig(global_batch_size=4)
    optim: OptimConfig = OptimConfig(lr=5e-5, weight_decay=0.0)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    perceptual: PerceptualConfig
    perceptual_weight: float = Field(1.0, ge=0)
    classifier_weight: float = Field(1.0, ge=0)
    """λ_CE."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _described_in_the_paper_alone(self) -> Self:
        if self.protocol == "released_code":
            raise ValueError(
                "the released code does not fine-tune the decoder; leave the stage out and sample with the plain "
                "autoencoder, or set protocol: paper"
            )
        return self
