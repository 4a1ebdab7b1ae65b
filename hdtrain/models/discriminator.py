"""PatchGAN discriminator (Isola et al. 2017) as in VQGAN, with GroupNorm: BatchNorm breaks under data parallelism."""

from jaxtyping import Float
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Three stride-2 convolutions, then one score a patch: (n, 3, h, w) in [−1, 1] to (n, 1, h/8 − 2, w/8 − 2)."""

    def __init__(self, channels: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for stride in (2, 2, 1):
            wider = min(width * 2, channels * 8)
            layers += [nn.Conv2d(width, wider, 4, stride, 1, bias=False), nn.GroupNorm(8, wider), nn.LeakyReLU(0.2)]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 a b"]:
        """Patch scores; positive means real."""
        scores: Tensor = self.layers(x)
        return scores
