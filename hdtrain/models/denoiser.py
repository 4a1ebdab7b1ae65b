"""Denoisers by preset: diffusers' UNet2DModel, and UNet2DConditionModel where there is a condition."""

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from hdtrain.config.presets import DENOISERS, Denoiser
from hdtrain.errors import ConfigError
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir

CLASS_EMBEDDING_STD = 0.3
"""Of the class embeddings at the start, about half the size of a trained timestep embedding: from zero the classes are
told apart far later (docs/results.md)."""


def build_denoiser(
    preset: str, channels: int, size: int, num_classes: int | None = None
) -> UNet2DModel | UNet2DConditionModel:
    """A fresh denoiser of one of `DENOISERS`: (z_t, t) to a prediction of the same shape.

    With classes it is a function of (z_t, t, class): each class has an embedding that is added to the timestep's, and
    one more, the last, stands for a class that is hidden. They begin as zero.

    Args:
        preset: its name.
        channels: of a latent; 3 for pixels.
        size: height and width of a latent, or of an image.
        num_classes: of a class-conditional denoiser, the hidden one not counted.

    Raises:
        ConfigError: the levels of the preset do not halve `size` evenly, or it has a condition of another kind.
    """
    sizes = DENOISERS[preset]
    if size % sizes.size_multiple:
        halved = len(sizes.block_channels) - 1
        problem = (
            f"preset: '{preset}' halves its input {halved} times, so its size must be a multiple of "
            f"{sizes.size_multiple}, got {size}; choose another preset or another resolution"
        )
        raise ConfigError("denoiser", [problem])
    if sizes.context_dim is None:
        return _unconditional(sizes, channels, size, num_classes)
    if num_classes is not None:
        problem = f"preset: '{preset}' is conditioned on embeddings, not on classes; choose another preset"
        raise ConfigError("denoiser", [problem])
    return _conditional(sizes, channels, size)


def build_unconditional(preset: str, channels: int, size: int, num_classes: int | None = None) -> UNet2DModel:
    """`build_denoiser` for a preset without embeddings as a condition."""
    unet = build_denoiser(preset, channels, size, num_classes)
    assert isinstance(unet, UNet2DModel), f"'{preset}' needs a condition"
    return unet


def hidden_class(unet: UNet2DModel) -> int | None:
    """The class index that says nothing of the class; None for a denoiser without classes."""
    count: int | None = unet.config["num_class_embeds"]
    return None if count is None else count - 1


def _unconditional(sizes: Denoiser, channels: int, size: int, num_classes: int | None) -> UNet2DModel:
    # A level without attention resamples by residual blocks only in a class of its own.
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if sizes.adm else ("DownBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=sizes.block_channels,
        down_block_types=tuple("AttnDownBlock2D" if attends else down for attends in sizes.attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else up for attends in reversed(sizes.attention)),
        layers_per_block=sizes.layers_per_block,
        attention_head_dim=sizes.head_channels,
        norm_num_groups=sizes.norm_groups,
        attn_norm_num_groups=sizes.norm_groups,
        downsample_type="resnet" if sizes.adm else "conv",
        upsample_type="resnet" if sizes.adm else "conv",
        resnet_time_scale_shift="scale_shift" if sizes.adm else "default",
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )
    if unet.class_embedding is not None:
        nn.init.normal_(unet.class_embedding.weight, std=CLASS_EMBEDDING_STD)
        nn.init.zeros_(unet.class_embedding.weight[-1])
    return unet


def _conditional(sizes: Denoiser, channels: int, size: int) -> UNet2DConditionModel:
    width = sizes.head_channels
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=sizes.block_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attention)),
        layers_per_block=sizes.layers_per_block,
        cross_attention_dim=sizes.context_dim,
        # Despite its name diffusers takes this for the number of heads.
        attention_head_dim=tuple(level // width if width else 1 for level in sizes.block_channels),
        norm_num_groups=sizes.norm_groups,
    )


def load_denoiser(directory: Path, device: torch.device | None = None) -> UNet2DModel:
    """Load a published denoiser's EMA weights, frozen, in eval mode."""
    check_files(directory, read_manifest(directory, ("denoiser",)))
    unet = UNet2DModel.from_pretrained(RunDir(directory).model, local_files_only=True, low_cpu_mem_usage=False)
    unet.requires_grad_(False)
    return unet.eval().to(device or torch.device("cpu"))
