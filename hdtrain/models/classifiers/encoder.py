"""φ on images and ϕ on noisy latents: the autoencoder's encoder, or half of ADM's U-Net, with attention pooling."""

from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from jaxtyping import Float, Int
from timm.layers import AttentionPool2d
from torch import Tensor, nn

from hdtrain.config.presets import CLASSIFIERS
from hdtrain.config.presets import Classifier as Sizes
from hdtrain.errors import ConfigError
from hdtrain.models.classifiers.base import Classifier


class EncoderClassifier(Classifier):
    """An encoder trunk, attention pooling (CLIP's) and a linear layer.

    On latents the residual blocks see the timestep, as ADM's noisy classifier does (Dhariwal & Nichol 2021). Presets of
    ADM are its classifier: the timestep scales and shifts normalised features, residual blocks change the resolution
    and begin as the identity, some levels attend, and no projection stands between pooling and last layer.

    Args:
        preset: of `CLASSIFIERS`.
        kind: `image` or `latent`.
        classes: their names.
        in_channels: 3 for images.
        resolution: height and width of an image, or of a latent.
        dropout: of the pooled features, before the last layer.

    Raises:
        ConfigError: ADM's levels do not halve `resolution` evenly.
    """

    def __init__(
        self, preset: str, kind: str, classes: list[str], in_channels: int, resolution: int, dropout: float = 0.0
    ):
        super().__init__(kind, classes, resolution)
        size = CLASSIFIERS[preset]
        channels = size.latent_channels if kind == "latent" else size.image_channels
        if size.adm:
            _check_halves(preset, len(channels) - 1, kind, resolution)
        width, eps = channels[0], 1e-5 if size.adm else 1e-6
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        time_width: Any = 4 * width if kind == "latent" else None
        if time_width:
            self.time = nn.ModuleList([Timesteps(width, True, 0), TimestepEmbedding(width, time_width)])
        common: dict[str, Any] = {"resnet_eps": eps, "resnet_act_fn": "silu", "resnet_groups": size.norm_groups}
        common["resnet_time_scale_shift"] = "scale_shift" if size.adm and time_width else "default"
        self.down = nn.ModuleList(
            get_down_block(
                _block(size, level),
                num_layers=size.layers_per_block,
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                temb_channels=time_width,
                add_downsample=level < len(channels) - 1,
                downsample_padding=1,
                downsample_type="resnet" if size.adm else "conv",
                attention_head_dim=size.head_channels,
                **common,
            )
            for level in range(len(channels))
        )
        self.mid = UNetMidBlock2D(
            in_channels=channels[-1],
            temb_channels=time_width,
            attention_head_dim=size.head_channels,
            attn_groups=size.norm_groups,
            **common,
        )
        self.norm = nn.GroupNorm(size.norm_groups, channels[-1], eps=eps)
        feature_size = resolution // 2 ** (len(channels) - 1)
        self.pool = AttentionPool2d(
            channels[-1],
            feat_size=feature_size,
            out_features=0 if size.adm else None,
            num_heads=channels[-1] // size.head_channels,
            pool_type="token",
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], len(classes))
        if size.adm:
            _begin_as_identity(nn.ModuleList([self.down, self.mid]))

    def _trunk(self, x: Tensor, t: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        temb = None
        if self.kind == "latent":
            projection, embedding = self.time
            temb = embedding(projection(t).to(x.dtype))
        x = self.conv_in(x)
        maps = []
        for block in self.down:
            x, _ = block(x, temb)
            maps.append(x)
        x = self.mid(x, temb)
        return nn.functional.silu(self.norm(x)), maps

    def feature_maps(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """Output of every level."""
        return self._trunk(x, t)[1]

    def features(self, x: Tensor, t: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n d"]:
        """Attention-pooled vector, without dropout."""
        pooled: Tensor = self.pool(self._trunk(x, t)[0])
        return pooled

    def forward(
        self, x: Tensor, t: Int[Tensor, " n"] | None = None, kept: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n k"]:
        """Logits.

        Args:
            x: images in [−1, 1], or scaled noisy latents.
            t: timesteps of latents.
            kept: what the features are multiplied by in place of dropout's own draw (`dropout_mask`).
        """
        features = self.features(x, t)
        features = self.dropout(features) if kept is None else features * kept
        logits: Tensor = self.head(features)
        return logits


def dropout_mask(uniform: Float[Tensor, "n d"], rate: float) -> Float[Tensor, "n d"]:
    """0 for the share `rate` of the features, 1/(1 − rate) for the rest, from numbers that are uniform in [0, 1)."""
    return (uniform >= rate).float() / (1 - rate)


def _block(size: Sizes, level: int) -> str:
    if not size.adm:
        return "DownBlock2D"
    return "AttnDownBlock2D" if size.attention[level] else "ResnetDownsampleBlock2D"


def _check_halves(preset: str, halvings: int, kind: str, resolution: int) -> None:
    if resolution % 2**halvings:
        what = "latents" if kind == "latent" else "images"
        problem = (
            f"model.preset: '{preset}' halves its input {halvings} times, so its size must be a multiple of "
            f"{2**halvings}, got {what} of {resolution}; choose another preset or another resolution"
        )
        raise ConfigError("classifier", [problem])


def _begin_as_identity(trunk: nn.Module) -> None:
    """Set the last layer of every residual branch to zero, as ADM does."""
    for module in trunk.modules():
        last: Any = module.conv2 if isinstance(module, ResnetBlock2D) else None
        if isinstance(module, Attention):
            last = module.to_out[0]  # type: ignore[index]
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
