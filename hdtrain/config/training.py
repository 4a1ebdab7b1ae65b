"""Configs of pre-training: `train-vae`, `encode`, `train-ldm`, `rebuild-ema`; and what all that read images share."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from hdtrain.config.base import (
    AutoencoderParent,
    ClassifierParent,
    Config,
    DenoiserParent,
    EmbeddingsParent,
    ImagesParent,
    Incidental,
    Kinds,
    LatentsParent,
    WeightsFile,
)
from hdtrain.config.engine import BatchConfig, DurationConfig, EmaConfig, EngineConfig, GuardConfig, OptimConfig
from hdtrain.config.presets import EMBEDDING_PRESETS, AutoencoderPreset, DenoiserPreset
from hdtrain.config.protocol import FollowsProtocol

Positive = Annotated[float, Field(gt=0)]


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


class ReadsImages(Config):
    """A config with image data sets and the way to read them."""

    images: list[ImagesParent] = Field(min_length=1)
    reader: ReaderConfig = ReaderConfig()

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        _check_weights(self.reader, self.images)
        return self


def _check_weights(reader: ReaderConfig, images: list[Path]) -> None:
    weights = reader.weights
    if weights is not None and len(weights) != len(images):
        raise ValueError(f"reader.weights has {len(weights)} numbers for {len(images)} data sets in images")


class NoPerceptual(Config):
    """No perceptual term."""

    kind: Literal["none"] = "none"


class SqueezenetEncoder(Config):
    """SqueezeNet 1.1 with weights from a local `.npz` (arrays `NAME.w`, `NAME.b`; input BGR minus the Caffe means)."""

    kind: Literal["squeezenet"] = "squeezenet"
    weights: WeightsFile


class InceptionEncoder(Config):
    """Inception-2015, pool3: the network of the FID, with the weights of one of its usual ports."""

    kind: Literal["inception"] = "inception"
    weights: WeightsFile
    """pytorch-fid's and torch-fidelity's state dict, or NVIDIA's TorchScript."""
    resize: Literal["clean", "tensorflow"] = "clean"
    """To its 299 pixels: as clean-fid, antialiased bicubic; or as torch-fidelity, TensorFlow 1's bilinear."""


class TimmEncoder(Config):
    """Any timm model; `weights` is a file of its state (safetensors or torch), None means random weights."""

    kind: Literal["timm"] = "timm"
    name: str
    weights: WeightsFile | None = None


class ClassifierEncoder(Config):
    """A published classifier of ours, its features before the last layer."""

    kind: Literal["classifier"] = "classifier"
    classifier: ClassifierParent


class TorchScriptEncoder(Config):
    """A TorchScript of the user's own: images (n, 3, `input_px`, `input_px`) to (n, d), or to tokens (n, t, d)."""

    kind: Literal["torchscript"] = "torchscript"
    file: WeightsFile
    """From `torch.jit.save`; it is a program, so use one that you trust."""
    input_px: int = Field(224, ge=1)
    """Images are brought to this size, antialiased bicubic."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of RGB in 0..1, subtracted; ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Divides what is left."""
    tokens: Literal["cls", "mean"] = "cls"
    """Of an output (n, t, d): the first token, or the mean of all."""


class LpipsVgg(Config):
    """LPIPS with its VGG-16 backbone from a local file (torchvision's `vgg16-397923af.pth`); lpips ships the rest."""

    kind: Literal["lpips-vgg"] = "lpips-vgg"
    weights: WeightsFile


EncoderConfig = Annotated[
    SqueezenetEncoder | InceptionEncoder | TimmEncoder | ClassifierEncoder | TorchScriptEncoder,
    Field(discriminator="kind"),
]
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


class TrainVaeConfig(ReadsImages, FollowsProtocol):
    """Train the autoencoder: `hdtrain train-vae`."""

    stage_name = "train-vae"

    preset: AutoencoderPreset = "kl-f4"
    start: AutoencoderParent | None = None
    """A published autoencoder, trained or imported, whose weights training begins with; None: fresh ones."""
    batch: BatchConfig = BatchConfig(global_batch_size=6)
    optim: OptimConfig = OptimConfig(lr=4.5e-6, weight_decay=0.0, betas=(0.5, 0.9))
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    perceptual: PerceptualConfig
    perceptual_weight: float = Field(1.0, ge=0)
    kl_weight: float = Field(6.25e-8, ge=0)
    """For the mean-reduced KL; the published 1e-6 belongs to the sum-reduced form."""
    adversarial: AdversarialConfig = AdversarialConfig()
    latent_stats_images: int = Field(10_000, ge=1)
    validation: ImagesParent | None = None
    """Images to measure reconstructions on; None: the first training images."""
    validation_images: int = Field(256, ge=1)
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


Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a denoiser's output is: ε, v = √ᾱ ε − √(1−ᾱ) z_0 (Salimans & Ho 2022), or z_0; diffusers' words."""


class NoiseScheduleConfig(Config):
    """β schedule, as diffusers names it; `linear` is the paper's word, `scaled_linear` what LDM code does.

    `squaredcos_cap_v2` is the cosine schedule (Nichol & Dhariwal 2021, eq. 17), which `beta_start` and `beta_end` say
    nothing of.
    """

    kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: float = Field(1e-4, gt=0)
    beta_end: float = Field(0.02, gt=0, lt=1)
    num_train_timesteps: int = Field(1000, ge=2)
    zero_terminal_snr: bool = False
    """Rescale the β so that z_{T−1} is pure noise (Lin et al. 2023, algorithm 1)."""

    @model_validator(mode="after")
    def _rising(self) -> "NoiseScheduleConfig":
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta_end ({self.beta_end}) must be greater than beta_start ({self.beta_start})")
        return self


class TrainLdmConfig(FollowsProtocol):
    """Train the diffusion model, on latents or on pixels: `hdtrain train-ldm`."""

    stage_name = "train-ldm"

    latents: LatentsParent | None = None
    vae: AutoencoderParent | None = None
    """The autoencoder that made `latents`."""
    images: list[ImagesParent] = Field([])
    """In place of `latents` and `vae`: train in pixel space, on x in [−1, 1]."""
    reader: ReaderConfig = ReaderConfig()
    """Of `images`."""
    preset: DenoiserPreset = "ldm4"
    start: DenoiserParent | None = None
    """A published denoiser, trained or imported, whose weights training begins with; None: fresh ones."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()
    prediction: Prediction = "epsilon"
    loss: Literal["mse", "l1"] = "mse"
    min_snr_gamma: float | None = Field(None, gt=0)
    """γ of min-SNR-γ (Hang et al. 2023; they use 5); None: every timestep weighs the same."""
    class_conditional: bool = False
    """The denoiser sees the class too, an embedding added to the timestep's; the samples must be labelled. With a
    `start` that is unconditional it begins as that, for every class."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """How often the class is hidden, so that the denoiser can do without: what classifier-free guidance needs."""
    embeddings: list[EmbeddingsParent] = Field([])
    """The denoiser looks at each sample's embedding, by cross-attention; found by the sample's key, those of the
    validation samples too. Needs a `preset` that can: ldm4-cond, small-cond, tiny-cond."""
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    """How often the embedding is hidden; with classes too, every other time the class with it."""
    embedding_places: bool = False
    """Tell which of several tokens each is, so that parts of an image (`grid-N`) have their places. Published: not."""
    batch: BatchConfig = BatchConfig(global_batch_size=4)
    optim: OptimConfig = OptimConfig(lr=5e-5, warmup_images=40_000, warmup_from=1e-6)
    duration: DurationConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    ema: EmaConfig = EmaConfig()
    validation: Annotated[Path | None, Kinds(("latents", "images"))] = None
    """Samples that are not trained on, of the same kind: their loss chooses the best checkpoint."""
    validation_images: int = Field(256, ge=1)
    """How many of them, the first of a fixed order."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        latent = [name for name in ("latents", "vae") if getattr(self, name) is not None]
        if self.images and latent:
            raise ValueError(
                f"images trains in pixel space, {' and '.join(latent)} in a latent space; give one or the other"
            )
        if not self.images and len(latent) < 2:
            given = f"got {latent[0]} alone" if latent else "got neither"
            raise ValueError(f"give latents and vae, or images to train in pixel space; {given}")
        if not self.images and self.reader != ReaderConfig():
            raise ValueError("reader belongs to images; latents were encoded at their resolution already")
        return self

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        _check_weights(self.reader, self.images)
        return self

    @model_validator(mode="after")
    def _a_preset_that_looks(self) -> Self:
        if self.embeddings and self.preset not in EMBEDDING_PRESETS:
            raise ValueError(
                f"preset: '{self.preset}' cannot look at embeddings; choose {', '.join(EMBEDDING_PRESETS)}, or leave "
                "embeddings out"
            )
        return self

    @model_validator(mode="after")
    def _loss_at_every_timestep(self) -> Self:
        if self.schedule.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "schedule.zero_terminal_snr does not go with prediction=epsilon: at the last timestep z is the noise "
                "itself, and ε says nothing of z_0; use v_prediction or sample"
            )
        if self.schedule.zero_terminal_snr and self.min_snr_gamma is not None:
            raise ValueError(
                "min_snr_gamma does not go with schedule.zero_terminal_snr: the last timestep would weigh nothing, and "
                "sampling begins there"
            )
        if self.min_snr_gamma is not None and self.loss != "mse":
            raise ValueError(f"min_snr_gamma weighs squared errors; it does not go with loss={self.loss}")
        return self


class RebuildEmaConfig(Config):
    """An EMA of another length, after training: `hdtrain rebuild-ema`."""

    denoiser: DenoiserParent
    """Trained with `ema.post_hoc`."""
    std: float = Field(gt=0, lt=0.28)
    """Relative width of the average: 0.10 averages over about the last fifth of the training (EDM2)."""
    images: int | None = Field(None, ge=1)
    """As it was after so many images, at one of the snapshots; None: at the end."""
