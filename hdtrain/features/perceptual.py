"""Perceptual distance: squared differences of unit-normalised feature maps, and LPIPS (Zhang et al. 2018) itself."""

import warnings
from pathlib import Path

import lpips
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.config.training import LpipsVgg, NoPerceptual, PerceptualConfig
from hdtrain.features.encoders import Encoder, build_encoder
from hdtrain.features.weights import load_strictly, read_state
from hdtrain.formats.atomic import sha256_file

EPSILON = 1e-10


class Perceptual(nn.Module):
    """A frozen distance; differentiable in both images."""

    name: str
    weights_sha256: str

    def forward(self, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
        """Mean distance over the batch of two images in [−1, 1]; 0 for equal images."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in eval mode, whatever contains it."""
        return super().train(False)


class EncoderPerceptual(Perceptual):
    """Any encoder with uniform channel weights. This is not LPIPS, whose channel weights were fitted to judgements."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.name, self.weights_sha256 = f"perceptual-{encoder.name}", encoder.weights_sha256

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over maps and channels of the mean over positions, as LPIPS without its fitted channel weights."""
        pairs = zip(self.encoder.feature_maps(x), self.encoder.feature_maps(y), strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(dim=1).mean() for a, b in pairs]).sum()


class LpipsPerceptual(Perceptual):
    """LPIPS v0.1 on VGG-16: channel weights ship with `lpips`, the backbone is torchvision's, from a local file."""

    def __init__(self, weights: Path):
        super().__init__()
        with warnings.catch_warnings():  # lpips calls torchvision by a deprecated argument
            warnings.simplefilter("ignore", UserWarning)
            self.net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        backbone: nn.Module = self.net.net
        places = {name.split(".", 1)[1]: name for name in backbone.state_dict()}
        state = {}
        for name, value in read_state(weights).items():
            number = name.removeprefix("features.")
            state[places.get(number, name) if number != name else name] = value
        load_strictly(backbone, state, weights, ignored=("classifier.",))
        self.name, self.weights_sha256 = "LPIPS-VGG", sha256_file(weights)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean LPIPS."""
        distance: Tensor = self.net(x, y)
        return distance.mean()


def _unit(maps: Tensor) -> Tensor:
    """Unit length over channels at every position; the ε sits under the root, where all-zero positions need it."""
    return maps * torch.rsqrt(maps.square().sum(dim=1, keepdim=True) + EPSILON)


def build_perceptual(config: PerceptualConfig) -> Perceptual | None:
    """The distance that `config` names, frozen; None for kind `none`.

    Raises:
        WeightsError: weights are missing or of another model.
    """
    if isinstance(config, NoPerceptual):
        return None
    if isinstance(config, LpipsVgg):
        return LpipsPerceptual(config.weights)
    return EncoderPerceptual(build_encoder(config))
