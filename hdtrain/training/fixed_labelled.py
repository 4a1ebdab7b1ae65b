"""A classifier on fixed labelled samples: figures that can be compared between steps, seeds and runs."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.data.pool import UNLABELLED
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.seeds import generator
from hdtrain.distributed.transfer import to_device
from hdtrain.distributed.world import World
from hdtrain.errors import DataError
from hdtrain.models.autoencoder import to_unit_range
from hdtrain.training.calibration import Logits
from hdtrain.training.noise_bins import NOISE_BINS

SEED = 0
"""Of order and noise, whatever the training's: all seeds are measured on the same."""
_BATCH = 16
"""Cut by index whatever the number of ranks, since kernels round differently for another batch size."""


class FixedLabelled:
    """The first samples of a data set's order, read once, each rank its share.

    Args:
        source: the samples.
        count: how many, at most all of them.
        num_classes: of the classifiers to come.
        prefix: of the figures' names.

    Raises:
        DataError: a sample has no label.
    """

    last: Logits | None = None
    """Of images, as they were measured last."""

    def __init__(self, source: TrainingImages | TrainingLatents, count: int, num_classes: int, prefix: str):
        self.count, self.num_classes, self.prefix = min(count, int(source.sizes.sum())), num_classes, prefix
        starts = World.from_environment().share(range(0, self.count, _BATCH))
        ranges = [range(start, min(start + _BATCH, self.count)) for start in starts]
        self._batches: list[tuple[range, Any]] = [(indices, source.batch(indices)) for indices in ranges]
        labels = torch.zeros(self.count, dtype=torch.int64, device=device())
        for indices, batch in self._batches:
            labels[indices.start : indices.stop] = to_device(batch.labels)
        self.labels: Int[Tensor, " n"] = all_reduce_sum(labels).cpu()
        if unlabelled := int((self.labels == UNLABELLED).sum()):
            where = ", ".join(sorted({str(directory) for directory, _ in source.shards.places}))
            raise DataError(f"{where}: {unlabelled} of the {self.count} samples to validate on have no label")

    @torch.no_grad()
    def _logits(self, of_batch: Callable[[range, Any], Tensor]) -> Logits:
        """What `of_batch` gives for all samples, on the CPU. A collective; the same on any number of ranks."""
        table = torch.zeros(self.count, self.num_classes, dtype=torch.float64, device=device())
        for indices, batch in self._batches:
            table[indices.start : indices.stop] = of_batch(indices, batch).double()
        return Logits(all_reduce_sum(table).cpu(), self.labels)

    def logits(self, model: nn.Module) -> Logits:
        """By which `model` is judged. A collective."""
        raise NotImplementedError

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Loss, accuracy and macro F1, the loss first. A collective."""
        self.last = self.logits(model)
        return self._named(self.last)

    def _named(self, logits: Logits) -> dict[str, float]:
        figures = {"loss": logits.loss, "accuracy": logits.accuracy, "macro_f1": logits.macro_f1}
        return {f"{self.prefix}/{name}": value for name, value in figures.items()}


class FixedLabelledImages(FixedLabelled):
    """For φ and timm classifiers: whole images, without augmentation.

    Args:
        datasets: run directories with their manifests.
        reader: of the training images.
        count: how many images.
        num_classes: of the classifiers to come.
    """

    def __init__(self, datasets: list[Any], reader: ReaderConfig, count: int, num_classes: int):
        plain = reader.model_copy(update={"weights": None, "cache_bytes": 0})
        super().__init__(TrainingImages(datasets, plain, SEED), count, num_classes, "validation")

    def logits(self, model: nn.Module) -> Logits:
        """Of the images."""
        return self._logits(lambda _, batch: model(to_unit_range(to_device(batch.images))))


class FixedLabelledLatents(FixedLabelled):
    """For ϕ: latents each with its own posterior and noise draw; timesteps are spread evenly over 0 … T−1.

    Args:
        source: the latents.
        count: how many.
        num_classes: of the classifiers to come.
        prefix: of the figures' names.
        schedule: of the noise.
        scale: of the latents.
        timestep_zero: ϕ is always told t = 0, and was trained on z_0.
    """

    def __init__(
        self,
        source: TrainingLatents,
        count: int,
        num_classes: int,
        prefix: str,
        schedule: NoiseSchedule,
        scale: float,
        timestep_zero: bool,
    ):
        super().__init__(source, count, num_classes, prefix)
        self.schedule, self.scale, self.timestep_zero = schedule, scale, timestep_zero

    def logits(self, model: nn.Module) -> Logits:
        """Under the noise that ϕ was trained with: all levels, or none."""
        return self._clean(model) if self.timestep_zero else self._noisy(model)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """As of images, and accuracy on clean latents (`accuracy_t0`) and in ten bins of t, clean first."""
        clean, noisy = self._clean(model), self._noisy(model)
        figures = self._named(clean if self.timestep_zero else noisy)
        figures[f"{self.prefix}/accuracy_t0"] = clean.accuracy
        bins = self._timesteps(range(self.count)) * NOISE_BINS // self.schedule.num_timesteps
        for number in range(NOISE_BINS):
            if (chosen := bins == number).any():
                name = f"{self.prefix}/accuracy_by_noise/{number}"
                figures[name] = float(noisy.correct[chosen].double().mean())
        return figures

    def _clean(self, model: nn.Module) -> Logits:
        """z_0 itself with t = 0."""

        def of_batch(indices: range, batch: Any) -> Tensor:
            return model(self._z0(indices, batch), torch.zeros(len(indices), dtype=torch.int64, device=device()))  # type: ignore[no-any-return]

        return self._logits(of_batch)

    def _noisy(self, model: nn.Module) -> Logits:
        """z_t of every sample's t; ϕ is told that t, or 0 where it knows no other."""

        def of_batch(indices: range, batch: Any) -> Tensor:
            z0, t = self._z0(indices, batch), self._timesteps(indices).to(device())
            z_t = self.schedule.add_noise(z0, self._normal("noise", indices, tuple(z0.shape[1:])), t)
            return model(z_t, torch.zeros_like(t) if self.timestep_zero else t)  # type: ignore[no-any-return]

        return self._logits(of_batch)

    def _z0(self, indices: range, batch: Any) -> Float[Tensor, "n c h w"]:
        mean, std = to_device(batch.moments).float().unbind(1)
        return (mean + std * self._normal("posterior", indices, tuple(mean.shape[1:]))) * self.scale

    def _timesteps(self, indices: range) -> Int[Tensor, " n"]:
        """The middle of each sample's part of the timesteps."""
        return (2 * torch.tensor(indices) + 1) * self.schedule.num_timesteps // (2 * self.count)

    def _normal(self, purpose: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        sources = [generator(SEED, f"fixed-{purpose}", index) for index in indices]
        return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device())
