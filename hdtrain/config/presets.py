"""Named model sizes. A config names a preset; the preset is the only place where channel counts are written.

Autoencoders are `diffusers.AutoencoderKL`, denoisers `diffusers.UNet2DModel`: a preset holds their keyword arguments.
"""

from dataclasses import dataclass
from typing import Literal

AutoencoderPreset = Literal["kl-f4", "kl-f4-small", "kl-f4-tiny"]
DenoiserPreset = Literal["ldm4", "small", "tiny"]
ClassifierPreset = Literal["lae", "lae-small", "lae-tiny"]


@dataclass(frozen=True)
class Autoencoder:
    """Channels a level; the spatial factor is 2^(levels − 1)."""

    block_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_groups: int
    mid_attention: bool

    @property
    def downsample_factor(self) -> int:
        """Pixels a latent cell, along one axis."""
        return int(2 ** (len(self.block_channels) - 1))


@dataclass(frozen=True)
class Denoiser:
    """Channels a level and which levels attend; `head_channels` is the width of one attention head."""

    block_channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_block: int
    head_channels: int
    norm_groups: int


@dataclass(frozen=True)
class Classifier:
    """The autoencoder's encoder trunk with attention pooling; on latents the trunk has its own, shallower, channels."""

    image_channels: tuple[int, ...]
    latent_channels: tuple[int, ...]
    layers_per_block: int
    norm_groups: int
    head_channels: int


AUTOENCODERS: dict[str, Autoencoder] = {
    "kl-f4": Autoencoder((128, 256, 512), 2, 3, 32, mid_attention=True),
    "kl-f4-small": Autoencoder((32, 64, 96), 1, 3, 16, mid_attention=True),
    "kl-f4-tiny": Autoencoder((16, 32, 48), 1, 3, 8, mid_attention=False),
}

DENOISERS: dict[str, Denoiser] = {
    "ldm4": Denoiser((224, 448, 672, 896), (False, True, True, True), 2, 32, 32),
    "small": Denoiser((64, 96, 128), (False, True, True), 1, 32, 32),
    "tiny": Denoiser((32, 64, 96), (False, False, True), 1, 32, 16),
}

CLASSIFIERS: dict[str, Classifier] = {
    "lae": Classifier((128, 256, 512), (128, 256, 512), 2, 32, 64),
    "lae-small": Classifier((24, 48, 96), (48, 96, 96), 1, 8, 32),
    "lae-tiny": Classifier((16, 32, 64), (32, 64, 64), 1, 8, 32),
}

DISCRIMINATOR_CHANNELS: dict[str, int] = {"kl-f4": 64, "kl-f4-small": 32, "kl-f4-tiny": 16}
