"""A class-conditional denoiser at one class a sample, with classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

ConditionalFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t, t, class) to a prediction of z_t's shape."""


def at_classes(
    denoiser: ConditionalFn, labels: Int[Tensor, " n"], hidden: int, weight: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser as a function of (z_t, t): f_u + w·(f_c − f_u), where f_u is that of the hidden class.

    ε, v and z_0 are linear in each other at one z_t, so it is the same guidance whatever the denoiser predicts.

    Args:
        denoiser: class-conditional.
        labels: the class of each sample.
        hidden: the class index that says nothing.
        weight: w; None and 1: f_c alone, one forward pass of n; 0: f_u alone; else one of 2n.
    """
    nothing = torch.full_like(labels, hidden)

    def both(z: Tensor, t: Tensor) -> Tensor:
        assert weight is not None
        output = denoiser(torch.cat([z, z]), torch.cat([t, t]), torch.cat([nothing, labels]))
        without, with_class = output.chunk(2)
        return without + weight * (with_class - without)

    if weight in (None, 1.0):
        return lambda z, t: denoiser(z, t, labels)
    if weight == 0:
        return lambda z, t: denoiser(z, t, nothing)
    return both
