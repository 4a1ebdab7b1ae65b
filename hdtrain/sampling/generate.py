"""Images of one unit: noise, label and steps of image i come from (seed, i) alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import Prediction
from hdtrain.diffusion.conditioning import Condition, classifier_free, hidden
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import generator
from hdtrain.models.autoencoder import Codec, LatentCodec, to_uint8
from hdtrain.models.denoiser import Denoiser2D, as_function, hidden_class
from hdtrain.sampling.embeddings import EmbeddingConditions
from hdtrain.sampling.models import Guide
from hdtrain.sampling.plan import SamplePlan, Unit


@dataclass
class ImageGenerator:
    """The frozen models and the plan."""

    config: SampleConfig
    plan: SamplePlan
    denoiser: Denoiser2D
    decoder: Codec
    classifier: Guide | None
    schedule: NoiseSchedule
    prediction: Prediction
    device: torch.device
    embeddings: EmbeddingConditions | None = None
    """What images are of, where the denoiser looks at embeddings."""
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

        numbers = [self.plan.label(index) for index in indices]
        labels = None if self.embeddings else torch.tensor(numbers, device=self.device)
        begin, strength = self._begin(numbers)
        z0 = sample_latents(
            self._at(numbers),
            self.schedule,
            self.config.solver,
            draw(),
            begin=begin,
            strength=strength,
            prediction=self.prediction,
            classifier=self.classifier,
            labels=labels,
            guidance=self.config.guidance,
            clip_latents=self.config.clip_latents,
            step_noise=draw,
        )
        return to_uint8(self.decoder.decode(z0)).cpu().numpy()

    def label(self, index: int) -> int | None:
        """The label of image `index`: its class, or that of the image whose embedding it is of."""
        number = self.plan.label(index)
        return self.embeddings.label(number) if self.embeddings else number

    def class_counts(self, classes: list[str]) -> dict[str, int]:
        """Images of each class; an image between two classes is of none."""
        if not classes:
            return {}
        if self.embeddings is None:
            return dict(zip(classes, self.plan.class_counts, strict=True))
        labels = Counter(self.label(index) for index in self.plan.indices)
        return {name: labels[label] for label, name in enumerate(classes)}

    def origin(self, index: int) -> dict[str, Any]:
        """What image `index` is of, besides its class."""
        return self.embeddings.conditions[self.plan.label(index)].described if self.embeddings else {}

    def _begin(self, numbers: list[int]) -> tuple[Tensor | None, float]:
        """What the images begin from in place of noise, if anything, and how much of it is lost."""
        if self.embeddings is None or not isinstance(self.decoder, LatentCodec):
            return None, 1.0
        begin = self.embeddings.begin(numbers, self.decoder)
        strength = self.embeddings.config.strength
        return (None, 1.0) if begin is None else (begin.to(self.device, self._solver_dtype), strength)

    def _at(self, numbers: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser as a function of (z_t, t), at these classes or embeddings if it is conditional."""
        function = as_function(self.compiled or self.denoiser)

        def output(z: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
            predicted: Tensor = function(z.to(self.denoiser.dtype), t, *condition)
            return predicted.to(z.dtype)

        condition, nothing = self._condition(numbers)
        return classifier_free(output, condition, nothing, self.config.classifier_free)

    def _condition(self, numbers: list[int]) -> tuple[Condition, Condition]:
        """What the denoiser sees besides (z_t, t), and what of the same shape says nothing."""
        nothing_class, tokens, labels = hidden_class(self.denoiser), None, None
        if self.embeddings is not None:
            tokens = self.embeddings.tokens(numbers).to(self.device)
            if nothing_class is not None:
                labels = self.embeddings.class_indices(numbers, nothing_class).to(self.device)
        elif nothing_class is not None:
            labels = torch.tensor(numbers, device=self.device)
        condition = tuple(part for part in (tokens, labels) if part is not None)
        return condition, hidden(tokens, labels, nothing_class)
