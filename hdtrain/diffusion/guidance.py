"""Classifier guidance: ∇ log p_ϕ(y | z_t) in fp32 (HistoDiffusion eq. 7; Dhariwal & Nichol 2021, algorithm 2)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.training import Prediction

LatentClassifierFn = Callable[[Tensor, Tensor], Tensor]


def classifier_gradient(
    classifier: LatentClassifierFn, z_t: Float[Tensor, "n c h w"], t: Int[Tensor, " n"], labels: Int[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """∇_{z_t} log p_ϕ(y | z_t, t), in float32, of float64 in float64. The classifier's parameters must be frozen."""
    dtype = torch.promote_types(z_t.dtype, torch.float32)
    with torch.enable_grad():
        z = z_t.detach().to(dtype).requires_grad_(True)
        log_probabilities = torch.log_softmax(classifier(z, t).to(dtype), dim=1)
        chosen = log_probabilities.gather(1, labels[:, None]).sum()
        return torch.autograd.grad(chosen, z)[0]


def guided(
    prediction: Prediction,
    output: Float[Tensor, "n c h w"],
    gradient: Float[Tensor, "n c h w"],
    alpha_bar: float,
    guidance: float,
) -> Float[Tensor, "n c h w"]:
    """A denoiser's output under guidance: ε̂ = ε − g·√(1−ᾱ_t)·∇ log p_ϕ(y | z_t, t), in terms of what it predicts.

    With δε = ε̂ − ε, and z_t as it is: v̂ = v + δε/√ᾱ, and ẑ_0 = z_0 − √((1−ᾱ)/ᾱ)·δε. Where ᾱ = 0, z_t is noise that
    says nothing of the class, and the output stays as it is.
    """
    if alpha_bar <= 0:
        return output
    delta = -guidance * (1 - alpha_bar) ** 0.5 * gradient
    if prediction == "epsilon":
        return output + delta
    if prediction == "sample":
        return output - ((1 - alpha_bar) / alpha_bar) ** 0.5 * delta
    return output + delta / alpha_bar**0.5
