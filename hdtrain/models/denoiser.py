"""Denoisers: diffusers' UNet2DModel by preset."""

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from hdtrain.config.presets import DENOISERS
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir


def build_denoiser(preset: str, latent_channels: int, latent_size: int) -> UNet2DModel:
    """A fresh ε_θ(z_t, t) of one of `DENOISERS`."""
    size = DENOISERS[preset]
    return UNet2DModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=size.block_channels,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in size.attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(size.attention)),
        layers_per_block=size.layers_per_block,
        attention_head_dim=size.head_channels,
        norm_num_groups=size.norm_groups,
        downsample_padding=0,
        flip_sin_to_cos=True,
        freq_shift=0,
    )


def load_denoiser(directory: Path, device: torch.device | None = None) -> UNet2DModel:
    """Load a published denoiser's EMA weights, frozen, in eval mode."""
    check_files(directory, read_manifest(directory, ("denoiser",)))
    unet = UNet2DModel.from_pretrained(RunDir(directory).model, local_files_only=True, low_cpu_mem_usage=False)
    unet.requires_grad_(False)
    return unet.eval().to(device or torch.device("cpu"))
