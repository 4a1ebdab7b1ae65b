"""Spherical interpolation between embeddings (Shoemake 1985)."""

import torch
from jaxtyping import Float
from torch import Tensor

NEARLY_PARALLEL = 0.9995
"""Above this |cos θ| the formula divides by almost nothing, and a straight line is the same to four digits."""


def slerp(
    a: Float[Tensor, "*n d"], b: Float[Tensor, "*n d"], tau: Float[Tensor, "*n"] | float
) -> Float[Tensor, "*n d"]:
    """[sin((1−τ)θ)·a + sin(τθ)·b] / sin θ, θ the angle between a and b; (1−τ)·a + τ·b where |cos θ| > 0.9995.

    Of raw embeddings: lengths are not made equal, as whoever looks at them divides by the length (method, section 9).

    Args:
        a: at τ = 0.
        b: at τ = 1.
        tau: in [0, 1], one for all or one a vector.
    """
    share = torch.as_tensor(tau, dtype=a.dtype, device=a.device).expand(a.shape[:-1]).unsqueeze(-1)
    lengths = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)
    cosine = (a * b).sum(dim=-1, keepdim=True) / lengths.clamp_min(torch.finfo(a.dtype).tiny)
    straight = cosine.abs() > NEARLY_PARALLEL
    angle = torch.where(straight, torch.ones_like(cosine), cosine.clamp(-1, 1)).acos()
    angle = torch.where(straight, torch.ones_like(angle), angle)  # any angle whose sine is not 0
    curved = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return torch.where(straight, (1 - share) * a + share * b, curved)
