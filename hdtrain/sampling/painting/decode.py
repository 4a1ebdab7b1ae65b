"""The canvas to pixels: windows with the overlap of the denoiser's, blended, a band of window rows at a time.

Method, section 9: each window's pixels weigh exp(−d²/0.8²), d from its centre in [−1, 1]². The sums are exact, so they
too have the same bits for any number of ranks. Only one band is held at a time; its complete rows are written off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hdtrain.diffusion.canvas import Weights, add_windows, coverage, cut, mean_of, profile
from hdtrain.distributed.collectives import all_reduce_sum
from hdtrain.distributed.world import World
from hdtrain.models.autoencoder import to_uint8
from hdtrain.sampling.painting.denoise import own_batches
from hdtrain.sampling.painting.models import PaintModels
from hdtrain.sampling.painting.plan import ROWS_AT_ONCE, PaintPlan

Rows = tuple[int, UInt8[np.ndarray, "h w 3"]]
"""First row of the image, and pixels."""


@dataclass
class CanvasDecoder:
    """Decodes band after band, all ranks together.

    Args:
        plan: sizes.
        models: frozen.
        world: this rank's place.
        blend: weights of a window's pixels.
    """

    plan: PaintPlan
    models: PaintModels
    world: World
    blend: Weights = "gaussian"

    def __post_init__(self) -> None:
        factor, plan = self.plan.factor, self.plan
        self._weights = profile(self.blend, plan.window * factor)
        height, width = plan.pixels
        self._rows = coverage([start * factor for start in plan.row_starts], self._weights, height)
        self._columns = coverage([start * factor for start in plan.column_starts], self._weights, width)

    def bands(
        self, z0: Float[Tensor, "c h w"], first: int, saw: Callable[[int], None], go_on: Callable[[], None]
    ) -> Iterator[Rows | None]:
        """The rows of the image that each band completes, from band `first` on; on ranks other than 0 None instead.

        What an earlier band laid over the rows of `first` is made again, so that it doesn't matter where one begins.

        Args:
            z0: the solved canvas.
            first: band to begin with.
            saw: as in `own_batches`.
            go_on: called by all ranks before a band is summed up; may leave.
        """
        carry: Tensor | None = None
        for band in range(max(0, first - 1), self.plan.num_bands):
            total = self._summed(z0, band, carry, saw, go_on)
            complete = len(self.plan.band_rows(band)) * self.plan.factor
            carry = total[:, complete:].clone()
            rows = self._pixels(band, total[:, :complete]) if self.world.is_main and band >= first else None
            del total  # before the next one is made
            if band >= first:
                yield rows

    @torch.no_grad()
    def _summed(
        self, z0: Tensor, band: int, carry: Tensor | None, saw: Callable[[int], None], go_on: Callable[[], None]
    ) -> Tensor:
        plan, reach = self.plan, self.plan.band_reach(band)
        height, width = len(reach) * plan.factor, plan.pixels[1]
        total = torch.zeros((3, height, width), dtype=torch.int64, device=self.models.device)
        if carry is not None and self.world.is_main:  # it is a sum over ranks already
            total[:, : carry.shape[1]] = carry
        for places, count in own_batches(plan, plan.band_windows(band), self.world, saw):
            pixels = self.models.codec.decode(cut(z0, places, plan.window))
            here = (places - torch.tensor([reach.start, 0])) * plan.factor
            add_windows(total, pixels[:count], here[:count], self._weights)
        go_on()
        return all_reduce_sum(total)

    def _pixels(self, band: int, total: Tensor) -> Rows:
        first = self.plan.band_rows(band).start * self.plan.factor
        weights = self._rows[first : first + total.shape[1]]
        pixels = np.empty((total.shape[1], total.shape[2], 3), np.uint8)
        for row in range(0, len(pixels), ROWS_AT_ONCE):
            here = slice(row, row + ROWS_AT_ONCE)
            mean = mean_of(total[:, here], weights[here], self._columns)
            pixels[here] = to_uint8(mean[None].float())[0].cpu().numpy()
        return first, pixels
