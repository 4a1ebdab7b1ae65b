"""Named model sizes. A config names a preset; the preset is the only place where channel counts are written.

Autoencoders are `diffusers.AutoencoderKL`, denoisers `diffusers.UNet2DModel` (with a condition `UNet2DConditionModel`):
a preset holds what their keyword arguments follow from.
"""

from dataclasses import dataclass
from typing import Literal

AutoencoderPreset = Literal["kl-f4", "kl-f4-small", "kl-f4-tiny", "kl-f8", "kl-f8-small", "kl-f8-tiny"]
DenoiserPreset = Literal["ldm4", "histodiff", "small", "tiny", "ldm4-cond", "small-cond", "tiny-cond"]
"""What `train-ldm` trains; those with `-cond` can look at embeddings."""
PriorPreset = Literal["dit-b", "dit-small", "dit-tiny"]
ClassifierPreset = Literal["lae", "lae-small", "lae-tiny", "adm-half-unet", "adm-half-unet-tiny"]


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
    """Channels a level and which levels attend, as in LDM (Rombach et al. 2022) or ADM (Dhariwal & Nichol 2021)."""

    block_channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_block: int
    head_channels: int | None
    """Width of one attention head; None: one head a level."""
    norm_groups: int
    adm: bool = False
    """The timestep scales and shifts normalised features, and residual blocks change the resolution; else it is added,
    and convolutions do."""
    context_dim: int | None = None
    """Width of the condition's tokens, which the attending levels look at; None: no condition."""

    @property
    def size_multiple(self) -> int:
        """What the input's height and width must be a multiple of: they are halved between levels."""
        return int(2 ** (len(self.block_channels) - 1))


@dataclass(frozen=True)
class Prior:
    """A transformer over the cells of a grid."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Classifier:
    """An encoder trunk with attention pooling: the autoencoder's, or half of ADM's U-Net.

    On latents the trunk may have its own, shallower, channels.
    """

    image_channels: tuple[int, ...]
    latent_channels: tuple[int, ...]
    layers_per_block: int
    norm_groups: int
    head_channels: int
    adm: bool = False
    """As ADM's classifier (Dhariwal & Nichol 2021): the timestep scales and shifts normalised features, residual blocks
    change the resolution, and `attention` says which levels attend. Else the middle block attends alone."""
    attention: tuple[bool, ...] = ()


AUTOENCODERS: dict[str, Autoencoder] = {
    "kl-f4": Autoencoder((128, 256, 512), 2, 3, 32, mid_attention=True),
    "kl-f4-small": Autoencoder((32, 64, 96), 1, 3, 16, mid_attention=True),
    "kl-f4-tiny": Autoencoder((16, 32, 48), 1, 3, 8, mid_attention=False),
    "kl-f8": Autoencoder((128, 256, 512, 512), 2, 4, 32, mid_attention=True),
    "kl-f8-small": Autoencoder((32, 64, 96, 96), 1, 4, 16, mid_attention=True),
    "kl-f8-tiny": Autoencoder((16, 32, 48, 48), 1, 4, 8, mid_attention=False),
}
"""`kl-f4` is HistoDiffusion's, `kl-f8` LDM's (and Stable Diffusion's)."""

DENOISERS: dict[str, Denoiser] = {
    "ldm4": Denoiser((224, 448, 672, 896), (False, True, True, True), 2, 32, 32),
    # HistoDiffusion's released code has 8 heads at every level. UNet2DModel knows one width of head for all levels: 48
    # gives 4, 8, 8 and 16. Neither the number of parameters nor the cost depends on it.
    "histodiff": Denoiser((192, 384, 384, 768, 768), (True, True, True, True, False), 2, 48, 32, adm=True),
    # One head a level, as in LDM's class-conditional ImageNet model, so that its weights fit.
    "ldm4-cond": Denoiser((192, 384, 576, 960), (False, True, True, True), 2, None, 32, context_dim=512),
    "small": Denoiser((64, 96, 128), (False, True, True), 1, 32, 32),
    "tiny": Denoiser((32, 64, 96), (False, False, True), 1, 32, 16),
    "small-cond": Denoiser((64, 96, 128), (False, True, True), 1, 32, 32, context_dim=128),
    "tiny-cond": Denoiser((32, 64, 96), (False, True, True), 1, 32, 16, context_dim=64),
}

EMBEDDING_PRESETS = tuple(name for name, sizes in DENOISERS.items() if sizes.context_dim is not None)
"""Denoisers that can be conditioned on embeddings."""

PRIORS: dict[str, Prior] = {
    "dit-b": Prior(768, 12, 12),
    "dit-small": Prior(384, 6, 6),
    "dit-tiny": Prior(64, 2, 4),
}
"""`dit-b` has DiT-B's blocks (Peebles & Xie 2023), and a cross-attention in each."""

_HALF_UNET = (128, 128, 256, 256, 512, 512)
_TINY_HALF_UNET = (16, 32, 32)

CLASSIFIERS: dict[str, Classifier] = {
    "lae": Classifier((128, 256, 512), (128, 256, 512), 2, 32, 64),
    "lae-small": Classifier((24, 48, 96), (48, 96, 96), 1, 8, 32),
    "lae-tiny": Classifier((16, 32, 64), (32, 64, 64), 1, 8, 32),
    # The ϕ of HistoDiffusion's released code: attention at downsample 8 and 16.
    "adm-half-unet": Classifier(
        _HALF_UNET, _HALF_UNET, 2, 32, 64, adm=True, attention=(False, False, False, True, True, False)
    ),
    "adm-half-unet-tiny": Classifier(
        _TINY_HALF_UNET, _TINY_HALF_UNET, 1, 8, 16, adm=True, attention=(False, True, False)
    ),
}

DISCRIMINATOR_CHANNELS: dict[str, int] = {
    "kl-f4": 64,
    "kl-f4-small": 32,
    "kl-f4-tiny": 16,
    "kl-f8": 64,
    "kl-f8-small": 32,
    "kl-f8-tiny": 16,
}
