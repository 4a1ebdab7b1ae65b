"""A world where everything is known: two Gaussian classes, their exact denoiser and their exact classifier.

z_0 of class k is N(μ_k, s²); then z_t is N(√ᾱ μ_k, ᾱs² + 1 − ᾱ), both score and posterior have a closed form.
"""

import torch
from torch import Tensor

from hdtrain.config.training import NoiseScheduleConfig, Prediction
from hdtrain.diffusion.schedule import NoiseSchedule

SHAPE = (2, 2, 2)
STD = 0.15


class Mixture:
    """Both classes equally often, μ = ±1 in the first element and 0 in the others."""

    def __init__(self, config: NoiseScheduleConfig, prediction: Prediction = "epsilon"):
        self.schedule, self.prediction = NoiseSchedule(config), prediction
        self.alphas = self.schedule.alphas_cumprod.double()
        self.means = torch.zeros(2, 8, dtype=torch.float64)
        self.means[:, 0] = torch.tensor([1.0, -1.0])

    def _at(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ᾱ, the variance, and z − √ᾱ μ_k for both classes."""
        alpha = self.alphas[int(t[0])]
        flat = z.double().flatten(1)
        return alpha, alpha * STD**2 + 1 - alpha, flat[:, None] - alpha.sqrt() * self.means

    def classifier(self, z: Tensor, t: Tensor) -> Tensor:
        """log p(z_t | k): logits, since the classes are equally often."""
        _, variance, away = self._at(z, t)
        return -away.square().sum(2) / (2 * variance)

    def denoiser(self, z: Tensor, t: Tensor) -> Tensor:
        """ε, v or z_0 that minimise the squared error."""
        alpha, variance, away = self._at(z, t)
        weight = torch.softmax(-away.square().sum(2) / (2 * variance), 1)
        z0 = (weight[..., None] * (self.means + STD**2 * alpha.sqrt() / variance * away)).sum(1).view(z.shape)
        if self.prediction == "sample":
            return z0.to(z.dtype)
        epsilon = (z.double() - alpha.sqrt() * z0) / (1 - alpha).sqrt()
        v = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * z0
        return (epsilon if self.prediction == "epsilon" else v).to(z.dtype)


def noise(count: int) -> Tensor:
    """z_T in float64."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
