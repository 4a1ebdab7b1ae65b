"""Configs that every training stage shares: optimizer, batch, duration, engine, guard."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hdtrain.config.base import Config, Incidental


class OptimConfig(Config):
    """AdamW (`weight_decay: 0` makes it Adam) with linear warm-up, then constant, cosine or linear decay to zero."""

    lr: float = Field(gt=0)
    """The learning rate at `reference_batch_size`, or, where that is not given, at `batch.global_batch_size`."""
    reference_batch_size: int | None = Field(None, ge=1)
    """The global batch that `lr` belongs to; another `batch.global_batch_size` rescales it by `scaling`."""
    scaling: Literal["sqrt", "linear"] = "sqrt"
    """With the square root of the batch (for Adam: Malladi et al. 2022), or in proportion to it (Goyal et al. 2017)."""
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    warmup_images: int = Field(0, ge=0)
    warmup_from: float = Field(0.0, ge=0)
    """The learning rate that the warm-up begins with."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_grad_norm: float = Field(1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""

    @model_validator(mode="after")
    def _rising_warmup(self) -> "OptimConfig":
        if self.warmup_from > self.lr:
            raise ValueError(f"warmup_from ({self.warmup_from:g}) must not be greater than lr ({self.lr:g})")
        return self


class BatchConfig(Config):
    """Sizes of a batch. Per-rank numbers are derived by `BatchPlan`, never stored."""

    global_batch_size: int = Field(ge=1)
    micro_batch_size: Annotated[int | None, Incidental()] = Field(None, ge=1)
    """Images a rank and pass; None: the global batch split evenly over the ranks, without accumulation."""


class DurationConfig(Config):
    """How long to train, in images seen, so that it survives a change of batch size."""

    images: int = Field(ge=1)
    checkpoint_every_images: Annotated[int | None, Incidental()] = Field(None, ge=1)
    """None: ten times a run."""
    visualise_every_images: Annotated[int | None, Incidental()] = Field(None, ge=1)
    """None: five times a run. The validation loss is measured at the same times, but for classifiers, which have
    `validate_every_images`."""
    keep_checkpoints: Annotated[int, Incidental()] = Field(2, ge=1)
    """The newest ones."""
    keep_best: Annotated[int, Incidental()] = Field(1, ge=0)
    """The ones with the lowest validation loss, besides; where there is a validation loss."""
    log_every_steps: Annotated[int, Incidental()] = Field(10, ge=1)


class EngineConfig(Config):
    """DeepSpeed, and how a step is computed. Apart from `precision` nothing here changes what is computed."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], Incidental()] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Annotated[bool, Incidental()] = False
    activation_checkpointing: Annotated[bool, Incidental()] = False
    """Compute activations again in the backward pass instead of keeping them: a third more work, far less memory."""
    channels_last: Annotated[bool, Incidental()] = False
    """Memory format of images and feature maps; weights stay as ZeRO's flat buffers hold them."""
    hang_timeout_sec: Annotated[float, Incidental()] = Field(1800.0, gt=0)
    """A rank that does not come on for so long is reported, with its stack, and the job ends."""

    @model_validator(mode="after")
    def _possible(self) -> "EngineConfig":
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("bf16 needs zero_stage 1, 2 or 3: DeepSpeed's stage 0 accumulates gradients in bf16")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile needs zero_stage 0, 1 or 2: the hooks of stage 3 break the graph")
        return self


class EmaConfig(Config):
    """Exponential moving averages of the fp32 master weights, kept beside them and partitioned with them."""

    decay: float = Field(0.9999, ge=0, lt=1)
    """With warm-up min(decay, (1+n)/(10+n)); its average is what the stage publishes."""
    post_hoc: bool = True
    """Keep two power-function averages too, so that `rebuild-ema` can make an EMA of any length afterwards."""
    snapshots: int = Field(16, ge=2)
    """How often in a run the two averages are written down."""


class GuardConfig(Config):
    """When a step is not taken: a loss or gradient that is not finite, or far from the ones before it."""

    loss_factor: Annotated[float | None, Incidental()] = Field(10.0, gt=1)
    """A loss of so many times the running mean, and six standard deviations of its logarithm away; None: off."""
    grad_norm_factor: Annotated[float | None, Incidental()] = Field(100.0, gt=1)
    """The same for the gradient's norm."""
    skip_batches: Annotated[int, Incidental()] = Field(0, ge=0)
    """How many such batches a run may pass over before it stops; 0: it stops at the first."""
