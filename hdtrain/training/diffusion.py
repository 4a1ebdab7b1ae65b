"""Training the diffusion model on latents or pixels: prediction of ε, v or z_0 at z_t, EMA of the weights.

A conditional one sees each sample's class or embedding besides, or both; sometimes they are hidden, so that it can do
without (classifier-free guidance, Ho & Salimans 2022, algorithm 1).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.images import ImageBatch
from hdtrain.diffusion.conditioning import Condition, classifier_free
from hdtrain.diffusion.objectives import errors, min_snr_weights, target
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import Draws, generator
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import LatentCodec, to_uint8
from hdtrain.models.denoiser import Denoiser2D, as_function, hidden_class
from hdtrain.training.augment import random_symmetry
from hdtrain.training.diffusion_space import DiffusionSpace
from hdtrain.training.engine import Engine
from hdtrain.training.fixed_noise import Batch, FixedNoise, clean_samples
from hdtrain.training.metrics import image_grid
from hdtrain.training.noise_bins import NoiseBins
from hdtrain.training.task import Task

GRID_IMAGES, GRID_COLUMNS, GRID_STEPS = 16, 8, 25
LATENT_CLIP, PIXEL_CLIP = 3.0, 1.0
"""Of ẑ_0 in the grids: early in training it runs away, and beyond three standard deviations they would show nothing
else."""


class DiffusionTask(Task):
    """L = mean w(t)·‖target − f_θ(z_t, t)‖², t ~ U{0 … T−1}; with ε as the target and w = 1, HistoDiffusion's eq. 3.

    Args:
        unet: the denoiser.
        space: what is trained on. Without a validation set the loss on fixed noise is that of training samples.
        config: objective, schedule, optimizer.
        plan: batch.
    """

    def __init__(self, unet: Denoiser2D, space: DiffusionSpace, config: TrainLdmConfig, plan: BatchPlan):
        self.config, self.codec = config, space.codec
        self.schedule = NoiseSchedule(config.schedule)
        self.hidden = hidden_class(unet)
        self.engine = Engine("denoiser", as_function(unet), config.optim, plan, config.engine, config.ema)
        self.engines = {"denoiser": self.engine}
        samples, count = space.validation or space.source, config.validation_images
        self.fixed = FixedNoise(samples, count, self.codec, self.schedule, config.seed)
        self.fixed_name = "validation" if space.validation else "fixed_noise"
        self._by_noise = NoiseBins()
        looks = config.embeddings and int(space.source.sizes.sum()) >= GRID_IMAGES
        self.examples = space.source.batch(range(GRID_IMAGES)) if looks else None

    def micro_step(self, batch: Batch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        z0 = clean_samples(batch, self.codec, lambda shape: draws.normal("posterior", shape))
        if isinstance(batch, ImageBatch) and self.config.reader.flips:
            z0 = random_symmetry(z0, draws)
        noise = draws.normal("noise", tuple(z0.shape[1:]))
        t = draws.integers("timestep", self.schedule.num_timesteps)
        unweighted = self._errors(self.engine, z0, noise, t, self._seen(batch, draws))
        self._by_noise.add(t, self.schedule.num_timesteps, unweighted)
        loss = (unweighted * self._weights(t)).mean()
        self.engine.backward(loss)
        return {"loss/diffusion": loss, "latent/std": z0.std()}

    def _condition(self, batch: Batch) -> Condition:
        """What the denoiser sees of a batch besides z_t: embeddings, classes (of an unlabelled sample, −1, the hidden
        one), both, or nothing."""
        tokens = () if batch.tokens is None else (to_device(batch.tokens).float(),)
        if self.hidden is None:
            return tokens
        labels = to_device(batch.labels)
        return (*tokens, torch.where(labels < 0, self.hidden, labels))

    def _seen(self, batch: Batch, draws: Draws) -> Condition:
        """`_condition`, hidden as often as the config says; where an embedding is, every other time the class too."""
        condition = self._condition(batch)
        hide_class = torch.zeros(len(batch.keys), dtype=torch.bool, device=device())
        if self.hidden is not None and self.config.label_dropout:
            hide_class = draws.uniform("label") < self.config.label_dropout
        if batch.tokens is not None and self.config.embedding_dropout:
            tokens, rest = condition[0], condition[1:]
            share = draws.uniform("embedding") / self.config.embedding_dropout
            condition = (torch.where((share < 1)[:, None, None], torch.zeros_like(tokens), tokens), *rest)
            hide_class = torch.where(share < 1, share < 0.5, hide_class)
        if self.hidden is None:
            return condition
        return (*condition[:-1], torch.where(hide_class, self.hidden, condition[-1]))

    def _errors(self, model: nn.Module | Engine, z0: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Every sample's error in what the model predicts."""
        wanted = target(self.config.prediction, z0, noise, self.schedule.alpha_bar(t))
        return errors(self.config.loss, model(self.schedule.add_noise(z0, noise, t), t, *condition), wanted)

    def _weights(self, t: Tensor) -> Tensor:
        if self.config.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        return min_snr_weights(self.config.prediction, self.schedule.alpha_bar(t), self.config.min_snr_gamma)

    def validate(self) -> dict[str, float]:
        """The training loss on fixed samples, noise and timesteps, of EMA and raw weights; nothing is hidden."""

        def per_sample(model: nn.Module, z0: Tensor, noise: Tensor, t: Tensor, batch: Batch) -> Tensor:
            return self._errors(model, z0, noise, t, self._condition(batch)) * self._weights(t)

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
        """DDIM samples from fixed noise, with the EMA weights and with the raw ones; of every class in turn, or of the
        embeddings of the first training samples: a row of these above each row of what was made from them."""
        count = max(GRID_IMAGES, self.hidden or 0)
        condition: Condition = ()
        if self.examples is not None:
            count, condition = len(self.examples.keys), self._condition(self.examples)
        elif self.hidden is not None:
            condition = (torch.arange(count, device=device()) % self.hidden,)
        noise = torch.randn(count, *self.codec.latent_shape, generator=generator(self.config.seed, "grid"))
        total = self.schedule.num_timesteps
        steps = next(steps for steps in range(min(GRID_STEPS, total - 1), 0, -1) if total % steps == 0)
        clip = LATENT_CLIP if isinstance(self.codec, LatentCodec) else PIXEL_CLIP
        grids = {}
        for name, which in (("samples/ema", "ema"), ("samples/raw", "weights")):
            model: Any = self.engine.replica(which)
            z0 = sample_latents(
                classifier_free(model, condition, condition),
                self.schedule,
                SolverConfig(steps=steps),
                noise.to(device()),
                prediction=self.config.prediction,
                clip_latents=clip,
            )
            shown = self._beside_examples(to_uint8(self.codec.decode(z0)))
            grids[name] = image_grid(shown.cpu().numpy(), min(GRID_COLUMNS, count))
        return grids

    def _beside_examples(self, images: Tensor) -> Tensor:
        """Rows of examples and of what was made from their embeddings, in turn."""
        if self.examples is None:
            return images
        z0 = clean_samples(self.examples, self.codec, lambda shape: torch.zeros(len(images), *shape, device=device()))
        pairs = zip(to_uint8(self.codec.decode(z0)).split(GRID_COLUMNS), images.split(GRID_COLUMNS), strict=True)
        return torch.cat([row for pair in pairs for row in pair])
