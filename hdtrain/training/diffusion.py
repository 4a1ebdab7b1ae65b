"""Training the diffusion model on latents or pixels: prediction of ε, v or z_0 at z_t, EMA of the weights.

A class-conditional one sees each sample's class besides; sometimes it is hidden, so that it can do without
(classifier-free guidance, Ho & Salimans 2022, algorithm 1).
"""

from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.images import ImageBatch
from hdtrain.diffusion.conditioning import at_classes
from hdtrain.diffusion.objectives import errors, min_snr_weights, target
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import Draws, generator
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import LatentCodec, to_uint8
from hdtrain.models.denoiser import hidden_class
from hdtrain.training.augment import random_symmetry
from hdtrain.training.diffusion_space import DiffusionSpace
from hdtrain.training.engine import Engine
from hdtrain.training.fixed_noise import Batch, FixedNoise, clean_samples
from hdtrain.training.metrics import image_grid
from hdtrain.training.noise_bins import NoiseBins
from hdtrain.training.task import Task

GRID_IMAGES, GRID_STEPS = 16, 25
LATENT_CLIP, PIXEL_CLIP = 3.0, 1.0
"""Of ẑ_0 in the grids: early in training it runs away, and beyond three standard deviations they would show nothing
else."""


class TensorDenoiser(nn.Module):
    """UNet2DModel that returns a tensor; of a class-conditional one the class is the third argument."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:
        """The prediction at (z_t, t), or at (z_t, t, class)."""
        output: Tensor = self.unet(z, t, classes).sample
        return output


class DiffusionTask(Task):
    """L = mean w(t)·‖target − f_θ(z_t, t)‖², t ~ U{0 … T−1}; with ε as the target and w = 1, HistoDiffusion's eq. 3.

    Args:
        unet: the denoiser.
        space: what is trained on. Without a validation set the loss on fixed noise is that of training samples.
        config: objective, schedule, optimizer.
        plan: batch.
    """

    def __init__(self, unet: UNet2DModel, space: DiffusionSpace, config: TrainLdmConfig, plan: BatchPlan):
        self.config, self.codec = config, space.codec
        self.schedule = NoiseSchedule(config.schedule)
        self.hidden = hidden_class(unet)
        self.engine = Engine("denoiser", TensorDenoiser(unet), config.optim, plan, config.engine, config.ema)
        self.engines = {"denoiser": self.engine}
        samples, count = space.validation or space.source, config.validation_images
        self.fixed = FixedNoise(samples, count, self.codec, self.schedule, config.seed)
        self.fixed_name = "validation" if space.validation else "fixed_noise"
        self._by_noise = NoiseBins()

    def micro_step(self, batch: Batch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        z0 = clean_samples(batch, self.codec, lambda shape: draws.normal("posterior", shape))
        if isinstance(batch, ImageBatch) and self.config.reader.flips:
            z0 = random_symmetry(z0, draws)
        noise = draws.normal("noise", tuple(z0.shape[1:]))
        t = draws.integers("timestep", self.schedule.num_timesteps)
        unweighted = self._errors(self.engine, z0, noise, t, self._drop(self._classes(to_device(batch.labels)), draws))
        self._by_noise.add(t, self.schedule.num_timesteps, unweighted)
        loss = (unweighted * self._weights(t)).mean()
        self.engine.backward(loss)
        return {"loss/diffusion": loss, "latent/std": z0.std()}

    def _classes(self, labels: Tensor) -> Tensor | None:
        """What the denoiser sees of labels: of an unlabelled sample (−1) the hidden class; None if unconditional."""
        return None if self.hidden is None else torch.where(labels < 0, self.hidden, labels)

    def _drop(self, classes: Tensor | None, draws: Draws) -> Tensor | None:
        if classes is None or self.hidden is None or not self.config.label_dropout:
            return classes
        return torch.where(draws.uniform("label") < self.config.label_dropout, self.hidden, classes)

    def _errors(
        self, model: nn.Module | Engine, z0: Tensor, noise: Tensor, t: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Every sample's error in what the model predicts."""
        wanted = target(self.config.prediction, z0, noise, self.schedule.alpha_bar(t))
        condition = () if classes is None else (classes,)
        return errors(self.config.loss, model(self.schedule.add_noise(z0, noise, t), t, *condition), wanted)

    def _weights(self, t: Tensor) -> Tensor:
        if self.config.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        return min_snr_weights(self.config.prediction, self.schedule.alpha_bar(t), self.config.min_snr_gamma)

    def validate(self) -> dict[str, float]:
        """The training loss on fixed samples, noise and timesteps, of EMA and raw weights; no class is hidden."""

        def per_sample(model: nn.Module, z0: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return self._errors(model, z0, noise, t, self._classes(labels)) * self._weights(t)

        models = {"loss_ema": "ema", "loss": "weights"}
        return {
            f"{self.fixed_name}/{name}": self.fixed.loss(self.engine.replica(which), per_sample)
            for name, which in models.items()
        }

    def pop_statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The unweighted error by noise level, in ten parts of the timesteps, low noise first."""
        return {"loss_by_noise": self._by_noise.pop()}

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """DDIM samples from fixed noise, with the EMA weights and with the raw ones; of every class in turn."""
        count = max(GRID_IMAGES, self.hidden or 0)
        noise = torch.randn(count, *self.codec.latent_shape, generator=generator(self.config.seed, "grid"))
        labels = torch.arange(count, device=device())
        total = self.schedule.num_timesteps
        steps = next(steps for steps in range(min(GRID_STEPS, total - 1), 0, -1) if total % steps == 0)
        clip = LATENT_CLIP if isinstance(self.codec, LatentCodec) else PIXEL_CLIP
        grids = {}
        for name, which in (("samples/ema", "ema"), ("samples/raw", "weights")):
            model: Any = self.engine.replica(which)
            z0 = sample_latents(
                model if self.hidden is None else at_classes(model, labels % self.hidden, self.hidden),
                self.schedule,
                SolverConfig(steps=steps),
                noise.to(device()),
                prediction=self.config.prediction,
                clip_latents=clip,
            )
            grids[name] = image_grid(to_uint8(self.codec.decode(z0)).cpu().numpy(), columns=8)
        return grids
