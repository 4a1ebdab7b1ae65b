"""Images of one unit: noise, label and steps of image i come from (seed, i) alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import Prediction
from hdtrain.diffusion.conditioning import at_classes
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import generator
from hdtrain.models.autoencoder import Codec, to_uint8
from hdtrain.models.denoiser import hidden_class
from hdtrain.sampling.models import Guide
from hdtrain.sampling.plan import SamplePlan, Unit


@dataclass
class ImageGenerator:
    """The frozen models and the plan."""

    config: SampleConfig
    plan: SamplePlan
    denoiser: UNet2DModel
    decoder: Codec
    classifier: Guide | None
    schedule: NoiseSchedule
    prediction: Prediction
    device: torch.device
    compiled: Callable[..., Any] | None = None
    """The denoiser as torch.compile made it, where that is wanted."""

    def batches(self, unit: Unit) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices, uint8 NHWC images), `batch_size` at a time.

        The networks always see `batch_size` samples, the last of a unit repeated where it has fewer left: kernels sum
        in another order at another batch size, but in one size they treat every sample alike, wherever it stands. So
        the bits of image i depend on nothing but (seed, i) and `batch_size`.
        """
        size = self.config.batch_size
        for start in range(0, len(unit.indices), size):
            indices = list(unit.indices[start : start + size])
            filled = indices + [indices[-1]] * (size - len(indices))
            yield indices, self._generate(filled)[: len(indices)]

    @property
    def _solver_dtype(self) -> torch.dtype:
        return torch.float64 if self.config.precision == "fp64" else torch.float32

    @torch.no_grad()
    def _generate(self, indices: list[int]) -> np.ndarray:
        generators = [generator(self.config.seed, "sample", index) for index in indices]

        def draw(_: int = 0) -> Tensor:
            noise = [torch.randn(self.decoder.latent_shape, generator=source) for source in generators]
            return torch.stack(noise).to(self.device, self._solver_dtype)

        labels = torch.tensor([self.plan.label(index) for index in indices], device=self.device)
        z0 = sample_latents(
            self._denoiser_of(labels),
            self.schedule,
            self.config.solver,
            draw(),
            prediction=self.prediction,
            classifier=self.classifier,
            labels=labels,
            guidance=self.config.guidance,
            clip_latents=self.config.clip_latents,
            step_noise=draw,
        )
        return to_uint8(self.decoder.decode(z0)).cpu().numpy()

    def _denoiser_of(self, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser as a function of (z_t, t), at these classes if it is class-conditional."""
        net, hidden = self.compiled or self.denoiser, hidden_class(self.denoiser)

        def output(z: Tensor, *condition: Tensor) -> Tensor:
            predicted: Tensor = net(z.to(self.denoiser.dtype), *condition).sample
            return predicted.to(z.dtype)

        if hidden is None:
            return output
        return at_classes(output, labels, hidden, self.config.classifier_free)
