"""Training the latent diffusion model: ε-prediction on z_t, EMA of the weights."""

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.func import functional_call

from hdtrain.config.batch import BatchPlan
from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.latents import LatentBatch
from hdtrain.diffusion.sampler import ddim_sample
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import Draws, generator
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import LatentCodec, to_uint8
from hdtrain.models.ema import Ema
from hdtrain.training.engine import Engine
from hdtrain.training.metrics import image_grid

GRID_IMAGES, GRID_STEPS = 16, 25
GRID_CLIP = 3.0
"""Early in training ẑ_0 runs away; beyond three standard deviations the grid would show nothing else."""


class EpsilonModel(nn.Module):
    """UNet2DModel that returns a tensor."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """ε_θ(z_t, t)."""
        epsilon: Tensor = self.unet(z, t).sample
        return epsilon


class DiffusionTask:
    """L = mean‖ε − ε_θ(z_t, t)‖², t ~ U{0 … T−1} (HistoDiffusion eq. 3)."""

    def __init__(self, unet: UNet2DModel, codec: LatentCodec, config: TrainLdmConfig, plan: BatchPlan):
        self.config, self.codec = config, codec
        self.schedule = NoiseSchedule(config.schedule)
        self.model = EpsilonModel(unet)
        self.engine = Engine("denoiser", self.model, config.optim, plan, config.engine)
        self.engines = {"denoiser": self.engine}
        self.ema = Ema(self.engine.master_weights(), config.ema.decay)

    def micro_step(self, batch: LatentBatch, draws: Draws, lr: float, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        mean, std = to_device(batch.moments).float().unbind(1)
        shape = tuple(mean.shape[1:])
        z0 = self.codec.latent(mean, std, draws.normal("posterior", shape))
        noise = draws.normal("noise", shape)
        t = draws.integers("timestep", self.schedule.num_timesteps)
        predicted = self.engine(self.schedule.add_noise(z0, noise, t), t).float()
        error = predicted - noise
        per_image = (error.square() if self.config.loss == "mse" else error.abs()).mean(dim=(1, 2, 3))
        loss = per_image.mean()
        self.engine.backward_and_step(loss, lr)
        return {"loss/diffusion": loss, "latent/std": z0.std()}

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """DDIM samples from fixed noise, with the EMA weights and with the raw ones."""
        noise = torch.randn(GRID_IMAGES, *self.codec.latent_shape, generator=generator(self.config.seed, "grid"))
        total = self.schedule.num_timesteps
        steps = next(steps for steps in range(min(GRID_STEPS, total - 1), 0, -1) if total % steps == 0)
        was_training = self.model.training
        self.model.eval()
        grids = {}
        # The module's own weights: asking the engine for its masters would be a collective, and one rank draws.
        raw = {name: p.detach().float() for name, p in self.model.named_parameters()}
        for name, weights in (("samples/ema", self.ema.shadow), ("samples/raw", raw)):

            def denoise(z: Tensor, t: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
                return functional_call(self.model, weights, (z, t))  # type: ignore[no-any-return]

            z0 = ddim_sample(
                denoise, self.schedule, SolverConfig(steps=steps), noise.to(device()), clip_latents=GRID_CLIP
            )
            grids[name] = image_grid(to_uint8(self.codec.decode(z0)).cpu().numpy(), columns=8)
        self.model.train(was_training)
        return grids
