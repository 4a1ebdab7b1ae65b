"""Classifiers: φ on images, ϕ on noisy latents (both the encoder's architecture with attention pooling), and timm's."""

import difflib
from pathlib import Path
from typing import Any

import timm
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from jaxtyping import Float, Int
from safetensors.torch import load_file
from timm.layers import AttentionPool2d
from torch import Tensor, nn

from hdtrain.config.presets import CLASSIFIERS
from hdtrain.data.decode import Resize
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir


class Classifier(nn.Module):
    """What every classifier offers: logits, features before the last layer, and intermediate maps."""

    resize: Resize = "squash"
    """How its images are brought to `resolution`; restored from the manifest."""

    def __init__(self, kind: str, classes: list[str], resolution: int):
        super().__init__()
        self.kind, self.classes, self.resolution = kind, classes, resolution

    def feature_maps(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """Intermediate maps (n, c, h, w), fine to coarse."""
        raise NotImplementedError

    def features(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n d"]:
        """The vector that the last layer sees."""
        raise NotImplementedError


class EncoderClassifier(Classifier):
    """The autoencoder's encoder trunk, attention pooling (CLIP's) and a linear layer.

    With `timesteps` the residual blocks see the timestep, as ADM's noisy classifier does (Dhariwal & Nichol 2021).
    """

    def __init__(self, preset: str, kind: str, classes: list[str], in_channels: int, resolution: int):
        super().__init__(kind, classes, resolution)
        size = CLASSIFIERS[preset]
        channels = size.latent_channels if kind == "latent" else size.image_channels
        width = channels[0]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        time_width: Any = 4 * width if kind == "latent" else None
        if time_width:
            self.time = nn.ModuleList([Timesteps(width, True, 0), TimestepEmbedding(width, time_width)])
        common: dict[str, Any] = {"resnet_eps": 1e-6, "resnet_act_fn": "silu", "resnet_groups": size.norm_groups}
        self.down = nn.ModuleList(
            get_down_block(
                "DownBlock2D",
                num_layers=size.layers_per_block,
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                temb_channels=time_width,
                add_downsample=level < len(channels) - 1,
                downsample_padding=1,
                attention_head_dim=size.head_channels,
                **common,
            )
            for level in range(len(channels))
        )
        self.mid = UNetMidBlock2D(
            in_channels=channels[-1], temb_channels=time_width, attention_head_dim=size.head_channels, **common
        )
        self.norm = nn.GroupNorm(size.norm_groups, channels[-1], eps=1e-6)
        feature_size = resolution // 2 ** (len(channels) - 1)
        heads = channels[-1] // size.head_channels
        self.pool = AttentionPool2d(channels[-1], feat_size=feature_size, num_heads=heads, pool_type="token")
        self.head = nn.Linear(channels[-1], len(classes))

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
        """Attention-pooled vector."""
        pooled: Tensor = self.pool(self._trunk(x, t)[0])
        return pooled

    def forward(self, x: Tensor, t: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits. x: images in [−1, 1], or scaled noisy latents with their timesteps."""
        logits: Tensor = self.head(self.features(x, t))
        return logits


class TimmClassifier(Classifier):
    """Any timm model; takes images in [−1, 1] and applies the model's own normalisation."""

    def __init__(self, name: str, classes: list[str], resolution: int):
        super().__init__("timm", classes, resolution)
        sized: dict[str, Any] = (
            {"img_size": resolution} if name.startswith(("vit", "deit", "swin", "eva", "beit")) else {}
        )
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ConfigError("timm", [f"model.name: timm knows no model '{name}'; near it: {', '.join(close) or '–'}"])
        self.model = timm.create_model(name, pretrained=False, num_classes=len(classes), **sized)
        normalisation: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        self.mean, self.std = normalisation["mean"], normalisation["std"]

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((x + 1) / 2 - mean) / std

    @property
    def _model(self) -> Any:
        """timm's models share methods, not a base class."""
        return self.model

    def feature_maps(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """The last map; vision transformers' tokens are not maps.

        Raises:
            ManifestError: the model has no feature maps.
        """
        last = self._model.forward_features(self._normalised(x))
        if last.ndim != 4:
            raise ManifestError(
                f"a {type(self.model).__name__} has tokens, not feature maps; use a convolutional model"
            )
        return [last]

    def features(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n d"]:
        """Pooled features before the classifier layer."""
        features: Tensor = self._model.forward_head(self._model.forward_features(self._normalised(x)), pre_logits=True)
        return features

    def forward(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n k"]:
        """Logits."""
        logits: Tensor = self.model(self._normalised(x))
        return logits


def build_classifier(architecture: dict[str, Any]) -> Classifier:
    """A fresh classifier from its manifest's `architecture`."""
    arguments = dict(architecture)
    return TimmClassifier(**arguments) if "name" in arguments else EncoderClassifier(**arguments)


def weights_file(directory: Path, seed: int) -> Path:
    """Where the weights of one seed lie."""
    return RunDir(directory).model / f"seed-{seed}.safetensors"


def load_classifier(directory: Path, seed: int | None = None) -> Classifier:
    """Load one seed's classifier (default: the first), frozen, in eval mode.

    Raises:
        ManifestError: not published, or it was not trained with that seed.
    """
    manifest = read_manifest(directory, ("classifier",))
    check_files(directory, manifest)
    seeds: list[int] = manifest.info["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ManifestError(f"{directory}: no classifier of seed {seed}; trained seeds: {', '.join(map(str, seeds))}")
    model = build_classifier(manifest.info["architecture"])
    model.load_state_dict(load_file(weights_file(directory, seed)))
    model.resize = manifest.info.get("resize", "squash")
    return model.requires_grad_(False).eval()
