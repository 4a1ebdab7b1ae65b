"""The models that a painting needs, on this rank's device, and the canvas's part of the config in their terms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdtrain.config.painting import PaintConfig
from hdtrain.config.training import NoiseScheduleConfig, Prediction
from hdtrain.diffusion.canvas import CanvasStep, canvas_steps
from hdtrain.diffusion.conditioning import classifier_free, hidden
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.formats.latent_space import PIXELS
from hdtrain.models.autoencoder import Codec, PixelCodec, load_autoencoder
from hdtrain.models.denoiser import TensorDenoiser, as_function, hidden_class, load_denoiser
from hdtrain.sampling.fit import ManifestOf

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(windows of z_t, t, raw embeddings (n, k, d)) to the guided prediction."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class PaintModels:
    """Frozen."""

    denoise: Denoise
    codec: Codec
    steps: list[CanvasStep]
    prediction: Prediction
    device: torch.device
    dtype: torch.dtype
    """Of the canvas."""


def load_models(config: PaintConfig, manifest_of: ManifestOf) -> PaintModels:
    """The denoiser with its guidance, the decoder and the steps.

    Args:
        config: of `paint`, checked (`hdtrain.sampling.painting.fit`).
        manifest_of: the manifest of a parent by its path in `config`.
    """
    info = manifest_of(config.denoiser).info
    unet = load_denoiser(config.denoiser, device())
    nn.Module.to(unet, _DTYPES[config.precision])
    if config.decoder is None:
        assert info.get("space") == PIXELS
        codec: Codec = PixelCodec(info["resolution"])
    else:
        codec = load_autoencoder(config.decoder, device()).codec
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    if isinstance(codec, nn.Module):
        codec.to(dtype)
    return PaintModels(
        denoise=with_guidance(as_function(unet), config.guidance, hidden_class(unet)),
        codec=codec,
        steps=canvas_steps(NoiseSchedule(NoiseScheduleConfig(**info["schedule"])), config.steps, config.noise),
        prediction=info["prediction"],
        device=device(),
        dtype=dtype,
    )


def with_guidance(denoiser: TensorDenoiser, weight: float, hidden_label: int | None) -> Denoise:
    """f_u + w·(f_c − f_u) by the embeddings; of a denoiser that knows classes too, the class stays hidden.

    Args:
        denoiser: looks at embeddings.
        weight: w.
        hidden_label: the class that says nothing; None: the denoiser knows none.
    """

    def output(z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"], *condition: Tensor) -> Float[Tensor, "n c h w"]:
        predicted: Tensor = denoiser(z.to(denoiser.dtype), t, *condition)
        return predicted.to(z.dtype)

    def denoise(z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        labels = None if hidden_label is None else torch.full_like(t, hidden_label)
        condition = (tokens,) if labels is None else (tokens, labels)
        return classifier_free(output, condition, hidden(tokens, labels, hidden_label), weight)(z, t)

    return denoise
