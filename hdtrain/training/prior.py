"""Training the prior: a diffusion model of whole grids of embeddings that predicts z_0 (method, section 9)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.prior import TrainPriorConfig
from hdtrain.data.standard import Standard
from hdtrain.data.training_grids import GridBatch, TrainingGrids
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.seeds import Draws, generator
from hdtrain.distributed.transfer import to_device
from hdtrain.distributed.world import World
from hdtrain.models.prior import GridPrior
from hdtrain.training.engine import Engine
from hdtrain.training.noise_bins import NoiseBins
from hdtrain.training.prior_space import PriorSpace
from hdtrain.training.task import Task

Condition = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What the network takes besides (z_t, t): present, given, labels, text, numeric."""
_BATCH = 16
"""Of fixed samples, whatever the number of ranks."""


def masked_errors(
    output: Float[Tensor, "n r c d"], wanted: Float[Tensor, "n r c d"], present: Bool[Tensor, "n r c"]
) -> Float[Tensor, " n"]:
    """Mean squared error of every grid over its cells that are present."""
    squares = (output.float() - wanted.float()).square().mean(dim=3)
    return torch.where(present, squares, 0).sum(dim=(1, 2)) / present.sum(dim=(1, 2))


class PriorTask(Task):
    """L = mean ‖z_0 − f_θ(z_t, t, conditions)‖² over the cells that are present, t ~ U{0 … T−1}, z_0 standardised.

    Args:
        prior: the network.
        space: what is trained on. Without a validation set the loss on fixed noise is that of training samples.
        config: dropout, schedule, optimizer.
        plan: batch.
    """

    def __init__(self, prior: GridPrior, space: PriorSpace, config: TrainPriorConfig, plan: BatchPlan):
        self.config, self.standard = config, space.embeddings
        self.schedule = NoiseSchedule(config.schedule)
        self.engine = Engine("prior", prior, config.optim, plan, config.engine, config.ema)
        self.engines = {"prior": self.engine}
        samples = space.validation or space.source
        self.fixed = FixedGrids(samples, config.validation_images, self.standard, self.schedule, config.seed)
        self.fixed_name = "validation" if space.validation else "fixed_noise"
        self._by_noise = NoiseBins()

    def micro_step(self, batch: GridBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        z0 = clean(batch, self.standard)
        noise = draws.normal("noise", tuple(z0.shape[1:]))
        t = draws.integers("timestep", self.schedule.num_timesteps)
        present, given, *values = condition_of(batch)
        all_hidden = draws.uniform("hide-all")[:, None] < self.config.dropout
        alone = torch.tensor(self.config.dropouts, device=given.device)
        given = given & ~all_hidden & ~(draws.uniform("hide", (3,)) < alone)
        output = self.engine(self.schedule.add_noise(z0, noise, t), t, present, given, *values)
        errors = masked_errors(output, z0, present)
        self._by_noise.add(t, self.schedule.num_timesteps, errors)
        loss = errors.mean()
        self.engine.backward(loss)
        return {"loss/diffusion": loss}

    def validate(self) -> dict[str, float]:
        """The training loss on fixed samples, noise and timesteps, of EMA and raw weights; nothing is hidden."""
        models = {"loss_ema": "ema", "loss": "weights"}
        return {
            f"{self.fixed_name}/{name}": self.fixed.loss(self.engine.replica(which)) for name, which in models.items()
        }

    def pop_statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The error by noise level, in ten parts of the timesteps, low noise first."""
        return {"loss_by_noise": self._by_noise.pop()}


class FixedGrids:
    """The first samples of an order, each with its own noise; timesteps are spread evenly over 0 … T−1.

    Args:
        source: the samples; read once, each rank its share.
        count: how many, at most all of them.
        standard: of the embeddings.
        schedule: of the noise.
        seed: of the noise.
    """

    def __init__(self, source: TrainingGrids, count: int, standard: Standard, schedule: NoiseSchedule, seed: int):
        self.standard, self.schedule, self.seed = standard, schedule, seed
        self.count = min(count, int(source.sizes.sum()))
        starts = World.from_environment().share(range(0, self.count, _BATCH))
        ranges = [range(start, min(start + _BATCH, self.count)) for start in starts]
        self._batches = [(indices, source.batch(indices)) for indices in ranges]

    @torch.no_grad()
    def loss(self, model: Callable[..., Tensor] | nn.Module) -> float:
        """The mean error over all samples. A collective; the same figure on any number of ranks."""
        losses = torch.zeros(self.count, dtype=torch.float64, device=device())
        for indices, batch in self._batches:
            z0 = clean(batch, self.standard)
            sources = [generator(self.seed, "fixed-noise", index) for index in indices]
            noise = torch.stack([torch.randn(z0.shape[1:], generator=source) for source in sources]).to(device())
            steps = [(2 * index + 1) * self.schedule.num_timesteps // (2 * self.count) for index in indices]
            t = torch.tensor(steps, device=device())
            told = condition_of(batch)
            output = model(self.schedule.add_noise(z0, noise, t), t, *told)
            losses[indices.start : indices.stop] = masked_errors(output, z0, told[0]).double()
        return float(all_reduce_sum(losses).mean())


def clean(batch: GridBatch, standard: Standard) -> Float[Tensor, "n r c d"]:
    """z_0 on the device: standardised, zeros where no cell is."""
    z0 = to_device(standard.apply(batch.embeddings))
    return torch.where(to_device(batch.present)[..., None], z0, 0)


def condition_of(batch: GridBatch) -> Condition:
    """What the network is told of a batch, on the device."""
    arrays = (batch.present, batch.given, batch.labels, batch.text, batch.numeric)
    present, given, labels, text, numeric = map(to_device, arrays)
    return present, given, labels, text, numeric
