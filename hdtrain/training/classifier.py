"""Training classifiers: φ and the downstream one on images, ϕ on noisy latents."""

import numpy as np
import torch
from torch import Tensor

from hdtrain.config.adaptation import ImageClassifier, LatentClassifier, TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.data.images import ImageBatch
from hdtrain.data.latents import LatentBatch
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.transfer import to_device
from hdtrain.models.autoencoder import to_uint8, to_unit_range
from hdtrain.models.classifier import Classifier, EncoderClassifier
from hdtrain.models.classifiers.encoder import dropout_mask
from hdtrain.training.augment import conventional, random_symmetry
from hdtrain.training.choice import Choice
from hdtrain.training.engine import Engine
from hdtrain.training.fixed_labelled import FixedLabelled, FixedLabelledImages, FixedLabelledLatents
from hdtrain.training.metrics import image_grid
from hdtrain.training.noise_bins import NoiseBins
from hdtrain.training.reliability import reliability_diagram
from hdtrain.training.task import Task


class ClassifierTask(Task):
    """Cross-entropy; what the batch is turned into is the subclass's.

    Args:
        model: is trained.
        config: optimizer, engine, choice of weights.
        plan: batch.
        fixed: what is measured again and again; None: nothing.
    """

    def __init__(self, model: Classifier, config: TrainClassifierConfig, plan: BatchPlan, fixed: FixedLabelled | None):
        self.model, self.config, self.fixed = model, config, fixed
        self.engine = Engine("classifier", model, config.optim, plan, config.engine)
        self.engines = {"classifier": self.engine}
        if config.validation:
            self.choice = Choice(config.choose == "best", config.validate_every_images, config.patience_images)

    def _step(self, inputs: tuple[Tensor, ...], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.engine(*inputs).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.engine.backward(loss)
        correct = (logits.argmax(1) == labels).float()
        return {"loss/cross_entropy": loss, "accuracy/train": correct.mean()}, correct

    def validate(self) -> dict[str, float]:
        """On the validation set; of ϕ, where there is none, on the first training latents."""
        return self.fixed.figures(self.engine.replica()) if self.fixed else {}


class ImageClassifierTask(ClassifierTask):
    """φ and timm classifiers, on images with flips; the data set's copies are augmented conventionally.

    Args:
        model: is trained.
        config: optimizer, engine, choice of weights.
        plan: batch.
        fixed: the validation set, if there is one.
        examples: to be shown.
    """

    fixed: FixedLabelledImages | None

    def __init__(
        self,
        model: Classifier,
        config: TrainClassifierConfig,
        plan: BatchPlan,
        fixed: FixedLabelledImages | None,
        examples: ImageBatch,
    ):
        super().__init__(model, config, plan, fixed)
        self.examples = examples
        self.flips = not isinstance(config.model, LatentClassifier) and config.model.reader.flips
        self.dropout = config.model.dropout if isinstance(config.model, ImageClassifier) else 0.0

    def micro_step(self, batch: ImageBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        x = to_unit_range(to_device(batch.images))
        if self.flips:
            x = random_symmetry(x, draws)
        if batch.is_copy is not None and batch.is_copy.any():
            copies = to_device(batch.is_copy).view(-1, 1, 1, 1)
            x = torch.where(copies, conventional(x, draws), x)
        inputs: tuple[Tensor, ...] = (x,)
        if self.dropout and isinstance(self.model, EncoderClassifier):
            uniform = draws.uniform("dropout", (self.model.head.in_features,))
            inputs = (x, torch.zeros(len(x), dtype=torch.int64, device=x.device), dropout_mask(uniform, self.dropout))
        logs, _ = self._step(inputs, to_device(batch.labels))
        return logs

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """Fixed training images, those that are classified rightly first."""
        x = to_unit_range(to_device(self.examples.images))
        correct = self.engine.replica()(x).argmax(1).cpu().numpy() == self.examples.labels
        tags = {"images/right": correct, "images/wrong": ~correct}
        grids = {tag: image_grid(self.examples.images[mask], columns=8) for tag, mask in tags.items() if mask.any()}
        if self.fixed and self.fixed.last:
            grids["reliability"] = reliability_diagram(self.fixed.last)
        return grids


class LatentClassifierTask(ClassifierTask):
    """ϕ(z_t, t) on noised latents with its accuracy by noise level: t ~ U{0 … T−1}, or z_0 with t = 0 alone.

    Args:
        model: is trained.
        config: optimizer, engine, choice of weights.
        plan: batch.
        fixed: the validation set, or the first training latents; it knows schedule, scale and timesteps.
        examples: to be shown.
    """

    def __init__(
        self,
        model: Classifier,
        config: TrainClassifierConfig,
        plan: BatchPlan,
        fixed: FixedLabelledLatents,
        examples: LatentBatch,
    ):
        super().__init__(model, config, plan, fixed)
        self.schedule, self.scale, self.timestep_zero = fixed.schedule, fixed.scale, fixed.timestep_zero
        self.examples = examples
        self._hits = NoiseBins()

    def micro_step(self, batch: LatentBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        mean, std = to_device(batch.moments).float().unbind(1)
        shape = tuple(mean.shape[1:])
        z_t = (mean + std * draws.normal("posterior", shape)) * self.scale
        t = torch.zeros(len(z_t), dtype=torch.int64, device=z_t.device)
        if not self.timestep_zero:
            t = draws.integers("timestep", self.schedule.num_timesteps)
            z_t = self.schedule.add_noise(z_t, draws.normal("noise", shape), t)
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
