"""How well an autoencoder reconstructs fixed images: a figure that can be compared between steps and runs."""

import math

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from hdtrain.data.images import TrainingImages
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.transfer import to_device
from hdtrain.distributed.world import World
from hdtrain.features.perceptual import Perceptual
from hdtrain.models.autoencoder import to_unit_range

_BATCH = 16
"""Cut by index whatever the number of ranks, since kernels round differently for another batch size."""


class FixedImages:
    """The first images of a data set's order.

    Args:
        source: the images; read once, each rank its share.
        count: how many, at most all of them.
    """

    def __init__(self, source: TrainingImages, count: int):
        self.count = min(count, source.order.epoch_size)
        starts = World.from_environment().share(range(0, self.count, _BATCH))
        self._batches = [source.batch(range(start, min(start + _BATCH, self.count))) for start in starts]

    @torch.no_grad()
    def figures(
        self, vae: AutoencoderKL, perceptual: Perceptual | None, perceptual_weight: float, prefix: str
    ) -> dict[str, float]:
        """Reconstruction loss (training's, without noise) and PSNR in dB, of the posterior's mean. A collective."""
        sums = torch.zeros(3, dtype=torch.float64, device=device())
        for batch in self._batches:
            x = to_unit_range(to_device(batch.images))
            decoded = vae.decode(vae.encode(x).latent_dist.mean).sample
            distance = perceptual(x, decoded) if perceptual else torch.zeros(())
            parts = [(x - decoded).abs().mean(), distance, ((x - decoded.clamp(-1, 1)) / 2).square().mean()]
            sums += len(x) * torch.stack([part.double().to(sums.device) for part in parts])
        l1, perceived, squared = (all_reduce_sum(sums) / self.count).tolist()
        psnr = -10 * math.log10(max(squared, 1e-12))
        return {f"{prefix}/reconstruction": l1 + perceptual_weight * perceived, f"{prefix}/psnr": psnr}
