"""Denoisers by preset: diffusers' UNet2DModel, and UNet2DConditionModel for those that can look at embeddings."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hdtrain.config.presets import DENOISERS, EMBEDDING_PRESETS, Denoiser
from hdtrain.errors import ConfigError
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir

CLASS_EMBEDDING_STD = 0.3
"""Of the class embeddings at the start, about half the size of a trained timestep embedding: from zero the classes are
told apart far later (docs/results.md)."""


Denoiser2D = UNet2DModel | UNet2DConditionModel


def build_denoiser(
    preset: str, channels: int, size: int, num_classes: int | None = None, embedding_dim: int | None = None
) -> Denoiser2D:
    """A fresh denoiser of one of `DENOISERS`: (z_t, t) to a prediction of the same shape.

    With classes it is a function of (z_t, t, class): each class has an embedding that is added to the timestep's, and
    one more, the last, stands for a class that is hidden. With `embedding_dim` it looks at tokens of that many
    features, projected to the preset's width (`encoder_hid_proj`); a preset that could and is not asked to looks at
    nothing.

    Args:
        preset: its name.
        channels: of a latent; 3 for pixels.
        size: height and width of a latent, or of an image.
        num_classes: of a class-conditional denoiser, the hidden one not counted.
        embedding_dim: features of an embedding that it is conditioned on, and one more a token if it is told their
            places.

    Raises:
        ConfigError: the levels of the preset do not halve `size` evenly, or it cannot look at embeddings.
    """
    sizes = DENOISERS[preset]
    if size % sizes.size_multiple:
        halved = len(sizes.block_channels) - 1
        problem = (
            f"preset: '{preset}' halves its input {halved} times, so its size must be a multiple of "
            f"{sizes.size_multiple}, got {size}; choose another preset or another resolution"
        )
        raise ConfigError("denoiser", [problem])
    if sizes.context_dim is not None:
        return _conditional(sizes, channels, size, num_classes, embedding_dim)
    if embedding_dim is not None:
        problem = f"preset: '{preset}' cannot look at embeddings; choose {' or '.join(EMBEDDING_PRESETS)}"
        raise ConfigError("denoiser", [problem])
    return _unconditional(sizes, channels, size, num_classes)


class TensorDenoiser(nn.Module):
    """A denoiser as a function of tensors to a tensor."""

    def __init__(self, unet: Denoiser2D):
        super().__init__()
        self.unet: Any = unet

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    def forward(self, z: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:
        """The prediction at (z_t, t), or at (z_t, t, class)."""
        width = self.unet.config.get("cross_attention_dim")  # of a UNet2DConditionModel, compiled or not
        if width is not None:
            nothing = z.new_zeros(len(z), 1, width)
            return self._prediction(self.unet(z, t, nothing, class_labels=classes))
        return self._prediction(self.unet(z, t, classes))

    @staticmethod
    def _prediction(output: Any) -> Tensor:
        prediction: Tensor = output.sample
        return prediction


class EmbeddingDenoiser(TensorDenoiser):
    """A denoiser that looks at tokens W·(e/‖e‖) + b of embeddings e (method, section 9).

    The projection is in the U-Net (diffusers' `encoder_hid_proj`); the division by the norm is here. Attention sees a
    set of tokens. A U-Net whose projection takes k features more than an embedding has is told which of k tokens each
    is: a one-hot number beside e/‖e‖, for which W has a column each.
    """

    def forward(  # type: ignore[override]
        self,
        z: Float[Tensor, "n c h w"],
        t: Int[Tensor, " n"],
        tokens: Float[Tensor, "n k d"],
        classes: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """The prediction at (z_t, t, e), or with the class as well.

        Args:
            z: z_t.
            t: timesteps.
            tokens: embeddings as their encoder gave them; zeros say nothing.
            classes: of a denoiser that is class-conditional too.
        """
        unit = functional.normalize(tokens.float(), dim=-1)
        if self.unet.config["encoder_hid_dim"] > tokens.shape[-1]:
            said = tokens.ne(0).any(dim=-1, keepdim=True)
            unit = torch.cat([unit, torch.eye(tokens.shape[1], device=unit.device) * said], dim=-1)
        return self._prediction(self.unet(z, t, unit.to(z.dtype), class_labels=classes))


def as_function(unet: Any) -> TensorDenoiser:
    """A denoiser of diffusers', compiled or not, as a function of tensors: `EmbeddingDenoiser` if it looks at some."""
    return EmbeddingDenoiser(unet) if embedding_dim_of(unet) is not None else TensorDenoiser(unet)


def embedding_dim_of(unet: Denoiser2D) -> int | None:
    """Features of the embeddings that it looks at; None if it looks at none."""
    dim: int | None = unet.config.get("encoder_hid_dim")
    return dim


def hidden_class(unet: Denoiser2D) -> int | None:
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
    _start_classes(unet)
    return unet


def _start_classes(unet: Any) -> None:
    if unet.class_embedding is not None:
        nn.init.normal_(unet.class_embedding.weight, std=CLASS_EMBEDDING_STD)
        nn.init.zeros_(unet.class_embedding.weight[-1])


def _conditional(
    sizes: Denoiser, channels: int, size: int, num_classes: int | None, embedding_dim: int | None
) -> UNet2DConditionModel:
    width = sizes.head_channels
    unet = UNet2DConditionModel(
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
        num_class_embeds=None if num_classes is None else num_classes + 1,
        encoder_hid_dim=embedding_dim,
        encoder_hid_dim_type=None if embedding_dim is None else "text_proj",
    )
    _start_classes(unet)
    if embedding_dim is not None:  # so that a hidden embedding is a token of zeros at first, as where there is none
        nn.init.zeros_(unet.encoder_hid_proj.bias)
    return unet


def load_denoiser(directory: Path, device: torch.device | None = None) -> Any:
    """Load a published denoiser's EMA weights, frozen, in eval mode: a UNet2DModel or a UNet2DConditionModel."""
    check_files(directory, read_manifest(directory, ("denoiser",)))
    folder = RunDir(directory).model
    model: Any = denoiser_class(folder)
    unet = model.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    unet.requires_grad_(False)
    return unet.eval().to(device or torch.device("cpu"))


def denoiser_class(folder: Path) -> type[Denoiser2D]:
    """Which of diffusers' classes the model of a folder is."""
    name = UNet2DModel.load_config(folder, local_files_only=True)["_class_name"]
    return UNet2DConditionModel if name == UNet2DConditionModel.__name__ else UNet2DModel
