"""Configs of the stages between hdtrain and the rest of the world: `export` and `import`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hdtrain.config.base import AutoencoderParent, Config, DenoiserParent, ForeignModel
from hdtrain.config.training import NoiseScheduleConfig, Prediction


class ExportConfig(Config):
    """Write a denoiser and its decoder as one folder of diffusers': `hdtrain export`."""

    denoiser: DenoiserParent
    decoder: AutoencoderParent | None = None
    """D′, or the plain autoencoder; None for a denoiser that was trained on pixels."""
    title: str = Field("Diffusion model of image patches", min_length=1)
    """Heading of the model card."""
    license: str = Field("other", pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    """Of the weights: an identifier that the Hugging Face hub knows (`apache-2.0`, `cc-by-nc-4.0`), or `other`."""
    data_license: str = Field("not stated", min_length=1)
    """Of the images that the models were trained on, in words."""


class ImportConfig(Config):
    """Publish a model from elsewhere as a run directory of hdtrain's: `hdtrain import`."""

    path: ForeignModel
    """A folder of diffusers' (a pipeline, or one model of it), or a file with CompVis's latent diffusion."""
    part: Literal["autoencoder", "denoiser"]
    """What of it is published."""
    latent_scale: float | None = Field(None, gt=0)
    """Of an autoencoder; None: what the file says, and 1 for a VQ model whose file says nothing."""
    resolution: int | None = Field(None, ge=8)
    """Pixels a side that an autoencoder, or a denoiser of pixels, works at; None: what the file says."""
    resize: Literal["squash", "crop"] = "squash"
    """How images are brought to that resolution, as `reader.resize`."""
    space: Literal["latents", "pixels", "unknown"] = "latents"
    """What a denoiser works on: the latents of `vae`, pixels, or the latents of an autoencoder that is not at hand;
    then it is good as a `start` of `train-ldm` only."""
    vae: AutoencoderParent | None = None
    """The autoencoder that a denoiser was trained with."""
    schedule: NoiseScheduleConfig | None = None
    """That a denoiser was trained with; None: what the file says, else LDM's."""
    prediction: Prediction | None = None
    """Of a denoiser; None: what the file says, else ε."""
    head_channels: int = Field(32, ge=1)
    """Width of an attention head of a CompVis U-Net, which its tensors do not tell; 32 is LDM-4's."""
    ema: bool = True
    """Take the moving average of a CompVis U-Net where the file has one, else its raw weights."""

    @property
    def publishes(self) -> str | None:
        """The part."""
        return self.part

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Self:
        if self.part == "autoencoder":
            self._refuse("part=autoencoder", "space", "vae", "schedule", "prediction", "head_channels", "ema")
            return self
        self._refuse("part=denoiser", "latent_scale")
        if self.space != "pixels":
            self._refuse(f"space={self.space}", "resolution", "resize")
        if self.space != "latents":
            self._refuse(f"space={self.space}", "vae")
        elif self.vae is None:
            raise ValueError(
                "a denoiser of latents needs vae, the autoencoder that it was trained with; where that is not at "
                "hand, space=unknown makes it a start for train-ldm; space=pixels is for one without autoencoder"
            )
        return self

    def _refuse(self, because: str, *names: str) -> None:
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"{because} has no use for {', '.join(given)}; leave it out")
