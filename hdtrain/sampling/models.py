"""The models that `sample` needs, loaded onto this rank's device."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.collectives import device
from hdtrain.models.autoencoder import Codec, PixelCodec, load_autoencoder
from hdtrain.models.classifier import Classifier, load_classifier
from hdtrain.sampling.fit import ManifestOf, check_decoder, check_guide

Timesteps = Literal["uniform", "zero"]


def load_decoder(config: SampleConfig, manifest_of: ManifestOf) -> Codec:
    """D′ on this rank's device, or nothing but pixels for a denoiser of pixels.

    Raises:
        ManifestError: as `check_decoder`.
    """
    check_decoder(config, manifest_of)
    if config.decoder is None:
        return PixelCodec(manifest_of(config.denoiser).info["resolution"])
    return load_autoencoder(config.decoder, device()).codec


@dataclass(frozen=True)
class Guide:
    """ϕ as the sampler asks it: logits of (z_t, t)."""

    classifier: Classifier
    timesteps: Timesteps = "uniform"
    """As it was trained. `zero`: on clean latents with t = 0, so that is what it is told of z_t too (released code)."""

    @property
    def classes(self) -> list[str]:
        """By label."""
        return self.classifier.classes

    def __call__(self, z_t: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Logits."""
        dtype = next(self.classifier.parameters()).dtype
        logits: Tensor = self.classifier(z_t.to(dtype), torch.zeros_like(t) if self.timesteps == "zero" else t)
        return logits


def load_guide(config: SampleConfig, manifest_of: ManifestOf) -> Guide | None:
    """ϕ on this rank's device, if there is to be one.

    Raises:
        ManifestError: as `check_guide`.
    """
    check_guide(config, manifest_of)
    if config.classifier is None:
        return None
    timesteps = manifest_of(config.classifier).info.get("timesteps", "uniform")
    return Guide(load_classifier(config.classifier).to(device()), timesteps)
