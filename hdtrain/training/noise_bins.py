"""A figure by noise level: sums and counts in ten equal bins of the timestep."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.distributed.collectives import device

NOISE_BINS = 10


class NoiseBins:
    """From clean (bin 0) to pure noise (bin 9), gathered on this rank since the last `pop`."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, NOISE_BINS, device=device())

    @torch.no_grad()
    def add(self, t: Int[Tensor, " n"], num_timesteps: int, values: Float[Tensor, " n"]) -> None:
        """One value an image, at its timestep."""
        bins = t * NOISE_BINS // num_timesteps
        self._sums.index_add_(1, bins, torch.stack([values.detach().float(), torch.ones_like(values)]))

    def pop(self) -> tuple[Float[Tensor, "10"], Float[Tensor, "10"]]:
        """Sums and counts, which begin again at zero."""
        sums, counts = self._sums.clone()
        self._sums.zero_()
        return sums, counts
