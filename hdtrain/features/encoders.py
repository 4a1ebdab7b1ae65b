"""Frozen encoders behind one face: images in, feature vectors or feature maps out, with the weights' hash."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hdtrain.config.training import (
    ClassifierEncoder,
    EncoderConfig,
    InceptionEncoder,
    SqueezenetEncoder,
    TimmEncoder,
    TorchScriptEncoder,
)
from hdtrain.errors import ManifestError, WeightsError
from hdtrain.features.inception import FEATURE_DIM as INCEPTION_DIM
from hdtrain.features.inception import INPUT_PX, load_inception
from hdtrain.features.resize import RESIZES, resize_float
from hdtrain.features.squeezenet import FEATURE_DIM, load_squeezenet
from hdtrain.features.torchscript import load_script, run_script
from hdtrain.features.weights import load_strictly, read_state
from hdtrain.formats.atomic import canonical_json, sha256_bytes, sha256_file
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.weights_registry import INCEPTION_PORTS
from hdtrain.models.classifier import load_classifier

RESIZE = RESIZES["clean"].description
FID_NAMES = {"FD": "FID", "KD": "KID", "FDinf": "FIDinf"}
SQUEEZENET_RESOLUTION = 160
"""It is fully convolutional, so any size will do: 160 takes half the time of ImageNet's 224."""


class Encoder(nn.Module):
    """A frozen network in eval mode."""

    name: str
    """What metrics are named after: FD-NAME."""
    weights_sha256: str
    resolution: int
    dim: int
    resize: str = RESIZE
    """How images come to `resolution`, in words, for the results."""

    def metric_name(self, kind: str) -> str:
        """What a figure on these features is called: `FD-NAME`. `FID` and `KID` are the usual Inception's alone.

        Args:
            kind: `FD` (Fréchet distance), `KD` (kernel distance), `FDinf`, or any other prefix.
        """
        return f"{kind}-{self.name}"

    @property
    def description(self) -> dict[str, Any]:
        """What its features depend on, for manifests: `name`, `weights` (sha256), `resize`, `resolution`, `dim`."""
        facts = {"name": self.name, "weights": self.weights_sha256, "resize": self.resize}
        return {**facts, "resolution": self.resolution, "dim": self.dim}

    @torch.no_grad()
    def embed(self, images: UInt8[np.ndarray, "n h w 3"] | UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        """Pooled features of RGB 0..255 images of any size, on the encoder's device; not L2-normalised."""
        device = next(itertools.chain(self.parameters(), self.buffers())).device
        return self.pooled(self._resized(torch.as_tensor(images).to(device))).float()

    @torch.no_grad()
    def embed_each(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]], batch_size: int) -> Float[Tensor, "b d"]:
        """As `embed`, of at most `batch_size` images of any sizes, each resized alone; black images fill the batch."""
        device = next(itertools.chain(self.parameters(), self.buffers())).device
        batch = torch.zeros(batch_size, 3, self.resolution, self.resolution, device=device)
        for i, image in enumerate(images):
            batch[i] = self._resized(torch.from_numpy(np.ascontiguousarray(image))[None].to(device))[0]
        return self.pooled(batch).float()

    def _resized(self, images: Tensor) -> Tensor:
        return resize_float(images, self.resolution)

    @abstractmethod
    def pooled(self, x: Float[Tensor, "n 3 r r"]) -> Float[Tensor, "n d"]:
        """Features of RGB 0..255 at the encoder's resolution."""

    @abstractmethod
    def feature_maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Maps (n, c, h, w), finest first, of images in [−1, 1] at their own size; differentiable in x."""

    def _freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Stays in eval mode, whatever contains it."""
        return super().train(False)


class Squeezenet(Encoder):
    """SqueezeNet 1.1: the global average of fire9's 512 maps."""

    def __init__(self, weights: Path):
        super().__init__()
        self.net = load_squeezenet(weights)
        self.name, self.weights_sha256 = "squeezenet1_1", sha256_file(weights)
        self.resolution, self.dim = SQUEEZENET_RESOLUTION, FEATURE_DIM
        self._freeze()

    def pooled(self, x: Tensor) -> Tensor:
        """Global average of the last maps."""
        return self.net(x)[-1].mean(dim=(2, 3))

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """conv1, fire3 and fire5 to fire9."""
        maps: list[Tensor] = self.net((x + 1) * 127.5)
        return maps


class Inception(Encoder):
    """The FID's network: Inception-2015, pool3, from either usual port; any other weights are named by their hash."""

    def __init__(self, weights: Path, resize: str):
        super().__init__()
        self.net = load_inception(weights)
        self.weights_sha256 = sha256_file(weights)
        port = INCEPTION_PORTS.get(self.weights_sha256)
        self.usual = port is not None
        self.name = f"inception-{port or self.weights_sha256[:8]}" + ("" if resize == "clean" else f"-{resize}")
        self.rule = RESIZES[resize]
        self.resize = self.rule.description
        self.resolution, self.dim = INPUT_PX, INCEPTION_DIM
        self._freeze()

    def metric_name(self, kind: str) -> str:
        """`FID`, `KID` or `FIDinf` with the weights of a usual port, whichever resize; else as of any encoder."""
        return FID_NAMES[kind] if self.usual and kind in FID_NAMES else super().metric_name(kind)

    def _resized(self, images: Tensor) -> Tensor:
        return self.rule.resize(images, self.resolution)

    def pooled(self, x: Tensor) -> Tensor:
        """pool3, of (x − 128) / 128."""
        features: Tensor = self.net((x - 128) / 128)
        return features

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """None: a port of NVIDIA's shows its last features only."""
        raise WeightsError(f"{self.name} gives no intermediate maps; use another model for the perceptual loss")


class Timm(Encoder):
    """A timm model without its head, at its own input size and normalisation."""

    def __init__(self, name: str, weights: Path | None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights must be the same on every rank and in every run
            try:
                net: Any = timm.create_model(name, pretrained=False, num_classes=0)
            except RuntimeError as error:
                raise WeightsError(f"timm has no model '{name}': {error}") from None
        self.net = net
        config = timm.data.resolve_model_data_config(net)
        self.name, self.weights_sha256 = f"timm-{name}", "random"
        if weights is None:
            self.name += "-random"
        else:
            head = net.pretrained_cfg.get("classifier") or "head"
            heads = (head,) if isinstance(head, str) else tuple(head)
            load_strictly(net, read_state(weights), weights, ignored=heads)
            self.weights_sha256 = sha256_file(weights)
        self.fixed_size = bool(net.pretrained_cfg.get("fixed_input_size"))
        self.resolution = int(config["input_size"][-1])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self._freeze()
        self.dim = int(self.pooled(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1])

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std  # type: ignore[operator]

    def pooled(self, x: Tensor) -> Tensor:
        """CLS token or global pooling, as the model does it before its head."""
        features: Tensor = self.net(self._normalised(x / 255))
        return features

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """timm's intermediates of every stage (of a transformer, the last four blocks as maps)."""
        if not hasattr(self.net, "forward_intermediates"):
            raise WeightsError(f"{self.name} gives no intermediate maps; use another model for the perceptual loss")
        if self.fixed_size and x.shape[-1] != self.resolution:
            x = nn.functional.interpolate(x, size=self.resolution, mode="bicubic", antialias=True)
        indices = 4 if self.fixed_size else None
        maps: list[Tensor] = self.net.forward_intermediates(
            self._normalised((x + 1) / 2), indices=indices, intermediates_only=True, output_fmt="NCHW"
        )
        return maps


class TorchScript(Encoder):
    """A TorchScript of the user's own; its settings are part of its name."""

    def __init__(self, config: TorchScriptEncoder):
        super().__init__()
        self.net, self.file, self.tokens = load_script(config.file), config.file, config.tokens
        self.weights_sha256 = sha256_file(config.file)
        settings = [self.weights_sha256, config.mean, config.std, config.tokens]
        self.name = f"torchscript-{config.file.stem}-{sha256_bytes(canonical_json(settings))[:8]}"
        self.resolution = config.input_px
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self._freeze()
        with torch.no_grad():
            self.dim = int(self.pooled(torch.zeros(2, 3, self.resolution, self.resolution)).shape[1])

    @property
    def description(self) -> dict[str, Any]:
        """With normalisation and choice of token besides."""
        settings = {name: getattr(self, name).flatten().tolist() for name in ("mean", "std")}
        return {**super().description, **settings, "tokens": self.tokens}

    def pooled(self, x: Tensor) -> Tensor:
        """Its output, of tokens the first or the mean."""
        features = run_script(self.net, (x / 255 - self.mean) / self.std, self.file)  # type: ignore[operator]
        if features.ndim == 3:
            return features[:, 0] if self.tokens == "cls" else features.mean(dim=1)
        return features

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """None: a TorchScript shows its output only."""
        raise WeightsError(f"{self.name} gives no intermediate maps; use another model for the perceptual loss")


class OwnClassifier(Encoder):
    """A published classifier of ours (its first seed): features before the last layer."""

    def __init__(self, directory: Path):
        super().__init__()
        self.net = load_classifier(directory)
        if self.net.kind == "latent":
            raise ManifestError(
                f"{directory}: a classifier of latents cannot encode images; use one of kind image or timm"
            )
        self.name, self.weights_sha256 = f"classifier-{directory.resolve().name}", _first_weights(directory)
        self.resolution = self.net.resolution
        self._freeze()
        self.dim = int(self.pooled(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1])

    def pooled(self, x: Tensor) -> Tensor:
        """The vector that the last layer sees."""
        return self.net.features(x / 127.5 - 1)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The classifier's own."""
        return self.net.feature_maps(x)


def _first_weights(directory: Path) -> str:
    manifest = read_manifest(directory, ("classifier",))
    seed = f"seed-{manifest.info['seeds'][0]}"
    named = [digest for name, digest in manifest.files.items() if Path(name).stem == seed]
    return named[0] if named else manifest.identity


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that `config` names, frozen, in eval mode, on the CPU.

    Raises:
        WeightsError: weights are missing or of another model.
        ManifestError: the classifier is not published or does not take images.
    """
    if isinstance(config, SqueezenetEncoder):
        return Squeezenet(config.weights)
    if isinstance(config, InceptionEncoder):
        return Inception(config.weights, config.resize)
    if isinstance(config, TimmEncoder):
        return Timm(config.name, config.weights)
    if isinstance(config, TorchScriptEncoder):
        return TorchScript(config)
    assert isinstance(config, ClassifierEncoder)
    return OwnClassifier(config.classifier)
