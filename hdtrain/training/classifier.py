"""Training classifiers: φ and the downstream one on images, ϕ on noisy latents."""

import numpy as np
import torch
from torch import Tensor

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import LatentClassifier, TrainClassifierConfig
from hdtrain.data.images import ImageBatch
from hdtrain.data.latents import LatentBatch
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import to_uint8, to_unit_range
from hdtrain.models.classifier import Classifier
from hdtrain.models.ema import Ema
from hdtrain.training.augment import conventional, random_symmetry
from hdtrain.training.engine import Engine
from hdtrain.training.metrics import image_grid

NOISE_BINS = 10


class ClassifierTask:
    """Cross-entropy; what the batch is turned into is the subclass's."""

    ema: Ema | None = None

    def __init__(self, model: Classifier, config: TrainClassifierConfig, plan: BatchPlan):
        self.model, self.config = model, config
        self.engine = Engine("classifier", model, config.optim, plan, config.engine)
        self.engines = {"classifier": self.engine}

    def _step(self, inputs: tuple[Tensor, ...], labels: Tensor, lr: float) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.engine(*inputs).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.engine.backward_and_step(loss, lr)
        correct = (logits.argmax(1) == labels).float()
        return {"loss/cross_entropy": loss, "accuracy/train": correct.mean()}, correct


class ImageClassifierTask(ClassifierTask):
    """φ and timm classifiers, on images with flips; the data set's copies are augmented conventionally."""

    def __init__(self, model: Classifier, config: TrainClassifierConfig, plan: BatchPlan, examples: ImageBatch):
        super().__init__(model, config, plan)
        self.examples = examples
        self.flips = not isinstance(config.model, LatentClassifier) and config.model.reader.flips

    def micro_step(self, batch: ImageBatch, draws: Draws, lr: float, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        x = to_unit_range(to_device(batch.images))
        if self.flips:
            x = random_symmetry(x, draws)
        if batch.is_copy is not None and batch.is_copy.any():
            copies = to_device(batch.is_copy).view(-1, 1, 1, 1)
            x = torch.where(copies, conventional(x, draws), x)
        logs, _ = self._step((x,), to_device(batch.labels), lr)
        return logs

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """Fixed training images, those that are classified rightly first."""
        self.model.eval()
        x = to_unit_range(to_device(self.examples.images))
        correct = self.model(self.engine.cast(x)).argmax(1).cpu().numpy() == self.examples.labels
        self.model.train()
        tags = {"images/right": correct, "images/wrong": ~correct}
        return {tag: image_grid(self.examples.images[mask], columns=8) for tag, mask in tags.items() if mask.any()}


class LatentClassifierTask(ClassifierTask):
    """ϕ(z_t, t) on noised latents, t ~ U{0 … T−1}, with its accuracy by noise level."""

    def __init__(
        self,
        model: Classifier,
        config: TrainClassifierConfig,
        plan: BatchPlan,
        schedule: NoiseSchedule,
        scale: float,
        examples: LatentBatch,
    ):
        super().__init__(model, config, plan)
        self.schedule, self.scale, self.examples = schedule, scale, examples
        self._hits = torch.zeros(NOISE_BINS, 2, device=device())

    def micro_step(self, batch: LatentBatch, draws: Draws, lr: float, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        mean, std = to_device(batch.moments).float().unbind(1)
        shape = tuple(mean.shape[1:])
        z0 = (mean + std * draws.normal("posterior", shape)) * self.scale
        t = draws.integers("timestep", self.schedule.num_timesteps)
        z_t = self.schedule.add_noise(z0, draws.normal("noise", shape), t)
        logs, correct = self._step((z_t, t), to_device(batch.labels), lr)
        bins = t * NOISE_BINS // self.schedule.num_timesteps
        # A running count with a memory of some hundred steps: single batches have too few images a bin.
        self._hits *= 0.99
        self._hits.index_add_(0, bins, torch.stack([correct, torch.ones_like(correct)], dim=1))
        hits = all_reduce_sum(self._hits.clone())  # so that every rank logs the same bins
        return logs | {f"accuracy/noise_bin_{i}": hits[i, 0] / hits[i, 1] for i in range(NOISE_BINS) if hits[i, 1] > 0}

    def visualise(self) -> dict[str, np.ndarray]:
        """The latents of fixed examples at rising noise, first three channels."""
        z0 = torch.from_numpy(self.examples.mean) * self.scale
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
        rows = []
        for timestep in range(0, self.schedule.num_timesteps, max(1, self.schedule.num_timesteps // 5)):
            rows.append(self.schedule.add_noise(z0, noise, torch.full((len(z0),), timestep)) / 3)
        return {"noisy_latents": image_grid(to_uint8(torch.cat(rows)[:, :3]).numpy(), columns=len(z0))}
