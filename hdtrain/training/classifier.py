"""Training classifiers: φ and the downstream one on images, ϕ on noisy latents."""

import numpy as np
import torch
from torch import Tensor

from hdtrain.config.adaptation import LatentClassifier, TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.data.images import ImageBatch
from hdtrain.data.latents import LatentBatch
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import to_uint8, to_unit_range
from hdtrain.models.classifier import Classifier
from hdtrain.training.augment import conventional, random_symmetry
from hdtrain.training.engine import Engine
from hdtrain.training.metrics import image_grid
from hdtrain.training.noise_bins import NoiseBins
from hdtrain.training.task import Task


class ClassifierTask(Task):
    """Cross-entropy; what the batch is turned into is the subclass's."""

    def __init__(self, model: Classifier, config: TrainClassifierConfig, plan: BatchPlan):
        self.model, self.config = model, config
        self.engine = Engine("classifier", model, config.optim, plan, config.engine)
        self.engines = {"classifier": self.engine}

    def _step(self, inputs: tuple[Tensor, ...], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.engine(*inputs).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.engine.backward(loss)
        correct = (logits.argmax(1) == labels).float()
        return {"loss/cross_entropy": loss, "accuracy/train": correct.mean()}, correct


class ImageClassifierTask(ClassifierTask):
    """φ and timm classifiers, on images with flips; the data set's copies are augmented conventionally."""

    def __init__(self, model: Classifier, config: TrainClassifierConfig, plan: BatchPlan, examples: ImageBatch):
        super().__init__(model, config, plan)
        self.examples = examples
        self.flips = not isinstance(config.model, LatentClassifier) and config.model.reader.flips

    def micro_step(self, batch: ImageBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        x = to_unit_range(to_device(batch.images))
        if self.flips:
            x = random_symmetry(x, draws)
        if batch.is_copy is not None and batch.is_copy.any():
            copies = to_device(batch.is_copy).view(-1, 1, 1, 1)
            x = torch.where(copies, conventional(x, draws), x)
        logs, _ = self._step((x,), to_device(batch.labels))
        return logs

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """Fixed training images, those that are classified rightly first."""
        x = to_unit_range(to_device(self.examples.images))
        correct = self.engine.replica()(x).argmax(1).cpu().numpy() == self.examples.labels
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
        self._hits = NoiseBins()

    def micro_step(self, batch: LatentBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        mean, std = to_device(batch.moments).float().unbind(1)
        shape = tuple(mean.shape[1:])
        z0 = (mean + std * draws.normal("posterior", shape)) * self.scale
        t = draws.integers("timestep", self.schedule.num_timesteps)
        z_t = self.schedule.add_noise(z0, draws.normal("noise", shape), t)
        logs, correct = self._step((z_t, t), to_device(batch.labels))
        self._hits.add(t, self.schedule.num_timesteps, correct)
        return logs

    def pop_statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Accuracy by noise level, from clean to pure noise."""
        return {"accuracy_by_noise": self._hits.pop()}

    def visualise(self) -> dict[str, np.ndarray]:
        """The latents of fixed examples at rising noise, first three channels."""
        z0 = torch.from_numpy(self.examples.mean) * self.scale
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
        rows = []
        for timestep in range(0, self.schedule.num_timesteps, max(1, self.schedule.num_timesteps // 5)):
            rows.append(self.schedule.add_noise(z0, noise, torch.full((len(z0),), timestep)) / 3)
        return {"noisy_latents": image_grid(to_uint8(torch.cat(rows)[:, :3]).numpy(), columns=len(z0))}
