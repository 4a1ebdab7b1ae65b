"""A conditional denoiser at one condition a sample, with classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

ConditionalFn = Callable[..., Tensor]
"""(z_t, t, *condition) to a prediction of z_t's shape."""
Condition = tuple[Tensor, ...]
"""What a denoiser takes besides (z_t, t), a row a sample: nothing, classes, embeddings, or embeddings and classes."""


def classifier_free(
    denoiser: ConditionalFn, condition: Condition, nothing: Condition, weight: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser as a function of (z_t, t): f_u + w·(f_c − f_u), where f_u is that of the hidden condition.

    ε, v and z_0 are linear in each other at one z_t, so it is the same guidance whatever the denoiser predicts.

    Args:
        denoiser: conditional.
        condition: of each sample.
        nothing: tensors of the same shapes that say nothing.
        weight: w; None and 1: f_c alone, one forward pass of n; 0: f_u alone; else one of 2n.
    """

    def both(z: Tensor, t: Tensor) -> Tensor:
        assert weight is not None
        pairs = (torch.cat(pair) for pair in zip(nothing, condition, strict=True))
        without, with_condition = denoiser(torch.cat([z, z]), torch.cat([t, t]), *pairs).chunk(2)
        return without + weight * (with_condition - without)

    if weight in (None, 1.0):
        return lambda z, t: denoiser(z, t, *condition)
    if weight == 0:
        return lambda z, t: denoiser(z, t, *nothing)
    return both


def hidden(
    tokens: Float[Tensor, "n k d"] | None = None,
    labels: Int[Tensor, " n"] | None = None,
    hidden_class: int | None = None,
) -> Condition:
    """The condition of the same shape that says nothing: embeddings of zeros, the hidden class."""
    embeddings = () if tokens is None else (torch.zeros_like(tokens),)
    if labels is None:
        return embeddings
    assert hidden_class is not None, "a denoiser that sees labels has a class that hides them"
    return (*embeddings, torch.full_like(labels, hidden_class))


def at_classes(
    denoiser: ConditionalFn, labels: Int[Tensor, " n"], hidden_class: int, weight: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """`classifier_free` of a class-conditional denoiser by the class of each sample; `hidden_class` says nothing."""
    return classifier_free(denoiser, (labels,), hidden(labels=labels, hidden_class=hidden_class), weight)


def at_embeddings(
    denoiser: ConditionalFn, tokens: Float[Tensor, "n k d"], weight: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """`classifier_free` of a denoiser that looks at embeddings, by those of each sample."""
    return classifier_free(denoiser, (tokens,), hidden(tokens), weight)
