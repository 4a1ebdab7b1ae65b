"""Configs of the training stages: `train-vae`, `train-ldm`, `train-classifier`, `adapt-decoder`; and of `encode`."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from hdtrain.config.base import (
    AutoencoderParent,
    ClassifierParent,
    Config,
    ImagesParent,
    Incidental,
    LatentsParent,
    WeightsFile,
)
from hdtrain.config.presets import AutoencoderPreset, ClassifierPreset, DenoiserPreset


class OptimConfig(Config):
    """AdamW (`weight_decay: 0` makes it Adam) with linear warm-up, then constant, cosine or linear decay to zero."""

    lr: float = Field(gt=0)
    """The learning rate at `batch.global_batch_size`; it is not rescaled."""
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_images: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_grad_norm: float = Field(1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""


class BatchConfig(Config):
    """Sizes of a batch. Per-rank numbers are derived by `BatchPlan`, never stored."""

    global_batch_size: int = Field(ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    """Images a rank and pass; None: the global batch split evenly over the ranks, without accumulation."""


class DurationConfig(Config):
    """How long to train, in images seen, so that it survives a change of batch size."""

    images: int = Field(ge=1)
    checkpoint_every_images: int | None = Field(None, ge=1)
    """None: ten times a run."""
    visualise_every_images: int | None = Field(None, ge=1)
    """None: five times a run."""
    keep_checkpoints: int = Field(2, ge=1)
    log_every_steps: int = Field(10, ge=1)


class EngineConfig(Config):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _masters_need_zero(self) -> "EngineConfig":
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("bf16 needs zero_stage 1 or 2: DeepSpeed's stage 0 accumulates gradients in bf16")
        return self


class EmaConfig(Config):
    """Exponential moving average, with warm-up min(decay, (1+n)/(10+n))."""

    decay: float = Field(0.9999, ge=0, lt=1)


class ShardAccess(Config):
    """Where shards lie, and how patiently they are read."""

    url: Annotated[str | None, Incidental()] = None
    """Where the shards lie that are not in the data set's folder: `https://…`, `s3://…`, `file:…`, `pipe:COMMAND`, with
    {name} for the shard's name (else it is appended) and {dataset} for the name of the data set's folder."""
    cache_dir: Annotated[str | None, Incidental()] = None
    """A folder on the node's own disk for such shards, shared by its ranks; may hold `$VARIABLES`. None: in $TMPDIR."""
    cache_max_bytes: Annotated[int, Incidental()] = Field(64 * 2**30, ge=1)
    """What lies in `cache_dir` at most; the shards whose use is longest ago go first."""
    retry_sec: Annotated[float, Incidental()] = Field(60.0, ge=0)
    """How long a read or download that fails is tried again, with growing pauses."""

    @field_validator("url")
    @classmethod
    def _readable(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"(https?|s3|gs|hf|ais|htgs|sftp|ftps|scp)://.|(file|pipe):.", url):
            raise ValueError("must begin with https://, s3://, gs://, file:, pipe: or another scheme of webdataset's")
        if url is not None and url.startswith("pipe:") and "{name}" not in url:
            raise ValueError("a pipe: must hold {name}, the place of the shard's name in the command")
        return url


class ReaderConfig(ShardAccess):
    """How image shards become batches."""

    resolution: int = Field(256, ge=8)
    resize: Literal["squash", "crop"] = "squash"
    """`squash`: resize to resolution × resolution (paper); `crop`: shortest side, then centre crop (released code)."""
    flips: bool = True
    """Random flips and quarter turns: tissue has no up."""
    block_shards: int = Field(8, ge=1)
    """Shards that are mixed with each other; memory against randomness."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """How often each data set of `images` is read, beside the others; None: every image once an epoch."""
    threads: Annotated[int, Incidental()] = Field(2, ge=1)
    cache_bytes: Annotated[int, Incidental()] = Field(512 * 2**20, ge=0)
    """A data set that fits in this many bytes when decoded is decoded once and kept."""
    max_failed_share: float = Field(0.01, ge=0, le=1)


class _ReadsImages(Config):
    """A config with image data sets and the way to read them."""

    images: list[ImagesParent] = Field(min_length=1)
    reader: ReaderConfig = ReaderConfig()

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        weights = self.reader.weights
        if weights is not None and len(weights) != len(self.images):
            raise ValueError(f"reader.weights has {len(weights)} numbers for {len(self.images)} data sets in images")
        return self


class NoPerceptual(Config):
    """No perceptual term."""

    kind: Literal["none"] = "none"


class SqueezenetEncoder(Config):
    """SqueezeNet 1.1 with weights from a local `.npz` (arrays `NAME.w`, `NAME.b`; input BGR minus the Caffe means)."""

    kind: Literal["squeezenet"] = "squeezenet"
    weights: WeightsFile


class TimmEncoder(Config):
    """Any timm model; `weights` is a file of its state (safetensors or torch), None means random weights."""

    kind: Literal["timm"] = "timm"
    name: str
    weights: WeightsFile | None = None


class ClassifierEncoder(Config):
    """A published classifier of ours, its features before the last layer."""

    kind: Literal["classifier"] = "classifier"
    classifier: ClassifierParent


class LpipsVgg(Config):
    """LPIPS with its VGG-16 backbone from a local file (torchvision's `vgg16-397923af.pth`); lpips ships the rest."""

    kind: Literal["lpips-vgg"] = "lpips-vgg"
    weights: WeightsFile


EncoderConfig = Annotated[SqueezenetEncoder | TimmEncoder | ClassifierEncoder, Field(discriminator="kind")]
PerceptualConfig = Annotated[
    NoPerceptual | LpipsVgg | SqueezenetEncoder | TimmEncoder | ClassifierEncoder, Field(discriminator="kind")
]


class AdversarialConfig(Config):
    """PatchGAN with hinge loss and the adaptive weight of VQGAN, from `start_images` on."""

    start_images: int = Field(300_006, ge=0)
    """50,001 steps at the published batch of 6."""
    weight: float = Field(0.5, ge=0)
    """0 trains without a discriminator."""
    lr: float | None = Field(None, gt=0)
    """None: the generator's."""


class TrainVaeConfig(_ReadsImages):
    """Train the autoencoder: `hdtrain train-vae`."""

    preset: AutoencoderPreset = "kl-f4"
    batch: BatchConfig = BatchConfig(global_batch_size=6)
    optim: OptimConfig = OptimConfig(lr=4.5e-6, weight_decay=0.0, betas=(0.5, 0.9))
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    perceptual: PerceptualConfig
    perceptual_weight: float = Field(1.0, ge=0)
    kl_weight: float = Field(6.25e-8, ge=0)
    """For the mean-reduced KL; the published 1e-6 belongs to the sum-reduced form."""
    adversarial: AdversarialConfig = AdversarialConfig()
    latent_stats_images: int = Field(10_000, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _whole_latents(self) -> "TrainVaeConfig":
        if self.reader.resolution % 16:
            raise ValueError(f"reader.resolution must be a multiple of 16 pixels, got {self.reader.resolution}")
        return self


class EncodeConfig(ShardAccess):
    """Cache the posterior's mean and std of every image: `hdtrain encode`."""

    images: list[ImagesParent] = Field(min_length=1)
    vae: AutoencoderParent
    """Images are brought to its resolution in the way it was trained with."""
    flips: bool = False
    """Cache the horizontally flipped image as a second entry (a flip of the image is not a flip of the latent)."""
    batch_size: int = Field(32, ge=1)
    records_per_member: int = Field(256, ge=1)
    threads: Annotated[int, Incidental()] = Field(2, ge=1)
    """Decoding threads."""
    max_failed_share: float = Field(0.01, ge=0, le=1)
    """More broken images than this stop the stage; fewer are skipped, named and counted."""


class NoiseScheduleConfig(Config):
    """β schedule, as diffusers names it; `linear` is the paper's word, `scaled_linear` what LDM code does."""

    kind: Literal["linear", "scaled_linear"] = "linear"
    beta_start: float = Field(1e-4, gt=0)
    beta_end: float = Field(0.02, gt=0, lt=1)
    num_train_timesteps: int = Field(1000, ge=2)

    @model_validator(mode="after")
    def _rising(self) -> "NoiseScheduleConfig":
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta_end ({self.beta_end}) must be greater than beta_start ({self.beta_start})")
        return self


class TrainLdmConfig(Config):
    """Train the latent diffusion model: `hdtrain train-ldm`."""

    latents: LatentsParent
    vae: AutoencoderParent
    preset: DenoiserPreset = "ldm4"
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()
    loss: Literal["mse", "l1"] = "mse"
    batch: BatchConfig = BatchConfig(global_batch_size=4)
    optim: OptimConfig = OptimConfig(lr=5e-5, warmup_images=40_000)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    ema: EmaConfig = EmaConfig()
    seed: int = Field(0, ge=0)


class ImageClassifier(_ReadsImages):
    """φ: the autoencoder's encoder trunk with attention pooling, on images."""

    kind: Literal["image"] = "image"
    preset: ClassifierPreset = "lae"


class LatentClassifier(Config):
    """ϕ: the same trunk on noisy latents z_t, with the timestep."""

    kind: Literal["latent"] = "latent"
    latents: LatentsParent
    preset: ClassifierPreset = "lae"
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()


class TimmClassifier(_ReadsImages):
    """The downstream classifier: any timm model, on real images plus whatever an arm adds."""

    kind: Literal["timm"] = "timm"
    name: str = "vit_base_patch16_224"
    weights: WeightsFile | None = None
    augmented_copies: int = Field(0, ge=0)
    """Extend the data set by this many conventionally augmented copies (random resized crop, colour jitter)."""


class TrainClassifierConfig(Config):
    """Train φ, ϕ or the downstream classifier, once a seed: `hdtrain train-classifier`."""

    model: Annotated[ImageClassifier | LatentClassifier | TimmClassifier, Field(discriminator="kind")]
    batch: BatchConfig = BatchConfig(global_batch_size=64)
    optim: OptimConfig = OptimConfig(lr=5e-5)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected every seed once, got {value}")
        return value


class AdaptDecoderConfig(_ReadsImages):
    """Fine-tune the decoder on the labelled set, with cross-entropy through φ: `hdtrain adapt-decoder`."""

    vae: AutoencoderParent
    classifier: ClassifierParent
    batch: BatchConfig = BatchConfig(global_batch_size=4)
    optim: OptimConfig = OptimConfig(lr=5e-5, weight_decay=0.0)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    perceptual: PerceptualConfig
    perceptual_weight: float = Field(1.0, ge=0)
    classifier_weight: float = Field(1.0, ge=0)
    """λ_CE."""
    seed: int = Field(0, ge=0)
