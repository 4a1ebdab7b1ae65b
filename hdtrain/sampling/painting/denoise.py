"""One step of the whole canvas, its windows divided over the ranks; the same bits for any number of them.

Windows come in batches that are the same for any number of ranks, and always full, the last window repeated: kernels
sum in another order at another batch size. Rank r takes batches r, r + N, … The sums are exact
(`hdtrain.diffusion.canvas`), and what follows them every rank computes for itself, alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from hdtrain.diffusion.canvas import (
    CanvasStep,
    Weights,
    add_windows,
    coverage,
    cut,
    mean_of,
    profile,
    window_conditions,
)
from hdtrain.diffusion.objectives import predicted_z0
from hdtrain.distributed.collectives import all_reduce_sum
from hdtrain.distributed.seeds import generator
from hdtrain.distributed.stop import STOP
from hdtrain.distributed.world import World
from hdtrain.sampling.painting.models import PaintModels
from hdtrain.sampling.painting.plan import PaintPlan

Places = list[tuple[int, int]]
Seen = Callable[[int, Tensor], None]
"""Told of the averaged ẑ_0: first row of the canvas, (c, w, columns)."""


def own_batches(
    plan: PaintPlan, windows: range, world: World, saw: Callable[[int], None]
) -> Iterator[tuple[Int64[Tensor, "b 2"], int]]:
    """This rank's batches of these windows: the places of a full batch, and how many of them count.

    Ends early when a signal came; the ranks then agree on what to do (`hdtrain.sampling.painting.stopping`).

    Args:
        plan: of the painting.
        windows: numbers of the windows.
        world: this rank's place.
        saw: told how many windows all ranks have done meanwhile, as far as they are equally fast.
    """
    batches = plan.batches(windows)
    for first in range(0, len(batches), world.size):
        if STOP.is_set:
            return
        together = batches[first : first + world.size]
        if world.rank < len(together):
            batch = together[world.rank]
            yield torch.tensor(batch + batch[-1:] * (plan.batch_size - len(batch))), len(batch)
        saw(sum(map(len, together)))


@dataclass
class CanvasSampler:
    """The reverse process of the canvas.

    Args:
        plan: sizes.
        models: frozen.
        embeddings: one a cell, raw, or several tokens of a cell.
        weights: of a window's places in the average.
        seed: of all noise.
        clip_latents: clamp a window's ẑ_0 to ± this.
        world: this rank's place.
    """

    plan: PaintPlan
    models: PaintModels
    embeddings: Float32[Tensor, "r c *k d"]
    weights: Weights
    seed: int
    clip_latents: float | None
    world: World

    def __post_init__(self) -> None:
        self.embeddings = self.embeddings.to(self.models.device, self.models.dtype)
        self._profile = profile(self.weights, self.plan.window)
        self._rows = coverage(self.plan.row_starts, self._profile, self.plan.height)
        self._columns = coverage(self.plan.column_starts, self._profile, self.plan.width)
        self._total = torch.zeros(self.shape, dtype=torch.int64, device=self.models.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the canvas."""
        return self.plan.channels, self.plan.height, self.plan.width

    def noise(self, number: int, row: int) -> Float[Tensor, "c w columns"]:
        """Noise of the rows of cells from `row` on: a function of (seed, number, row), drawn once for all windows.

        Args:
            number: 0 for z_T, n + 1 for step n.
            row: a multiple of the window.
        """
        shape = (self.plan.channels, self.plan.window, self.plan.width)
        drawn = torch.randn(shape, generator=generator(self.seed, "paint", number, row))
        return drawn.to(self.models.device, self.models.dtype)

    def start(self) -> Float[Tensor, "c h w"]:
        """z_T."""
        z = torch.empty(self.shape, dtype=self.models.dtype, device=self.models.device)
        for row in range(0, self.plan.height, self.plan.window):
            z[:, row : row + self.plan.window] = self.noise(0, row)
        return z

    @torch.no_grad()
    def look(self, number: int, z: Float[Tensor, "c h w"], saw: Callable[[int], None]) -> None:
        """Ask the denoiser about this rank's windows of step `number`. `move` takes the step."""
        step = self.models.steps[number]
        self._total.zero_()
        windows = range(self.plan.num_windows)
        for places, count in own_batches(self.plan, windows, self.world, saw):
            z0 = self._windows_z0(step, cut(z, places, self.plan.window), places)
            add_windows(self._total, z0[:count], places[:count], self._profile)

    def _windows_z0(self, step: CanvasStep, windows: Tensor, places: Tensor) -> Tensor:
        t = torch.full((len(windows),), step.timestep, dtype=torch.int64, device=windows.device)
        tokens = window_conditions(self.embeddings, places, self.plan.window)
        tokens = tokens.reshape(len(places), -1, tokens.shape[-1])
        output = self.models.denoise(windows, t, tokens)
        z0 = predicted_z0(self.models.prediction, output, windows, step.alpha_bar)
        return z0 if self.clip_latents is None else z0.clamp(-self.clip_latents, self.clip_latents)

    @torch.no_grad()
    def move(self, number: int, z: Float[Tensor, "c h w"], seen: Seen | None = None) -> None:
        """Sum what all ranks have looked at, and take step `number`, in place.

        Args:
            number: of the step.
            z: the canvas.
            seen: told of the averaged ẑ_0, a row of cells at a time.
        """
        step, window = self.models.steps[number], self.plan.window
        all_reduce_sum(self._total)
        for row in range(0, self.plan.height, window):
            here = slice(row, row + window)
            z0 = mean_of(self._total[:, here], self._rows[here], self._columns).to(z.dtype)
            z[:, here] = step.after(z[:, here], z0, self.noise(number + 1, row) if step.sigma else None)
            if seen:
                seen(row, z0)
