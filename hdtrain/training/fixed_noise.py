"""The diffusion loss on fixed samples, noise and timesteps: a figure that can be compared between steps and runs."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.data.images import ImageBatch, TrainingImages
from hdtrain.data.latents import LatentBatch, TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.seeds import generator
from hdtrain.distributed.transfer import to_device
from hdtrain.distributed.world import World
from hdtrain.models.autoencoder import Codec, LatentCodec, to_unit_range

Source = TrainingLatents | TrainingImages
Batch = LatentBatch | ImageBatch
PerSample = Callable[[nn.Module, Tensor, Tensor, Tensor, Batch], Tensor]
"""A model, z0, noise, timesteps and the batch that they belong to, to every sample's loss."""

_BATCH = 16
"""Cut by index whatever the number of ranks, since kernels round differently for another batch size."""


def clean_samples(
    batch: Batch, codec: Codec, posterior: Callable[[tuple[int, ...]], Tensor]
) -> Float[Tensor, "n c h w"]:
    """z0 of a batch on the device: scaled latents drawn with noise of a given shape, or pixels in [−1, 1]."""
    if isinstance(batch, ImageBatch):
        return to_unit_range(to_device(batch.images))
    assert isinstance(codec, LatentCodec)
    mean, std = to_device(batch.moments).float().unbind(1)
    return codec.latent(mean, std, posterior(tuple(mean.shape[1:])))


class FixedNoise:
    """The first samples of a data set's order, each with its own noise; timesteps are spread evenly over 0 … T−1.

    Args:
        source: the samples; read once, each rank its share.
        count: how many, at most all of them.
        codec: from samples to z0.
        schedule: of the noise.
        seed: of the noise.
    """

    def __init__(self, source: Source, count: int, codec: Codec, schedule: NoiseSchedule, seed: int):
        self.codec, self.schedule, self.seed = codec, schedule, seed
        self.count = min(count, int(source.sizes.sum()))
        starts = World.from_environment().share(range(0, self.count, _BATCH))
        ranges = [range(start, min(start + _BATCH, self.count)) for start in starts]
        self._batches = [(indices, source.batch(indices)) for indices in ranges]

    @torch.no_grad()
    def loss(self, model: nn.Module, per_sample: PerSample) -> float:
        """The mean of `per_sample` over all samples. A collective; the same figure on any number of ranks."""
        losses = torch.zeros(self.count, dtype=torch.float64, device=device())
        for indices, batch in self._batches:
            z0 = clean_samples(batch, self.codec, lambda shape, i=indices: self._normal("posterior", i, shape))  # type: ignore[misc]
            noise = self._normal("noise", indices, tuple(z0.shape[1:]))
            t = torch.tensor([self._timestep(index) for index in indices], device=device())
            losses[indices.start : indices.stop] = per_sample(model, z0, noise, t, batch).double()
        return float(all_reduce_sum(losses).mean())

    def _timestep(self, index: int) -> int:
        """The middle of this sample's part of the timesteps."""
        return (2 * index + 1) * self.schedule.num_timesteps // (2 * self.count)

    def _normal(self, purpose: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        sources = [generator(self.seed, f"fixed-{purpose}", index) for index in indices]
        return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device())
