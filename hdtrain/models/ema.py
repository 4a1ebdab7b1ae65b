"""Exponential moving average of weights, in fp32, with warm-up."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Ema:
    """shadow ← d·shadow + (1−d)·weights, with d = min(decay, (1+n)/(10+n)) after n updates."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.decay, self.updates = decay, 0
        self.shadow = {name: value.detach().float().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """One update from the fp32 master weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in weights:
            self.shadow[name].lerp_(value.detach().float(), 1 - decay)
        self.updates += 1
