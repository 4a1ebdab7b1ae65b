"""A canvas larger than the denoiser's window, solved as one image (method, section 9). Pure functions of tensors.

Windows overlap. Each says what it takes the clean canvas to be, ẑ_0. These are averaged, ε̂ follows from the average,
and the canvas takes one step of DDIM as a whole, with noise drawn once. Averaging ε̂ instead is wrong (method, §9).

**The same bits for any number of ranks.** The sum of floating-point numbers depends on their order, and ranks change
the order. Windows are therefore summed as 64-bit integers, ẑ_0 · 2³² rounded: integers add exactly, in whatever order
and by whatever tree an all-reduce takes. The rounding is by 1.2e-10 at most. A window's values must lie within ±2¹⁵
and at most 2¹⁶ windows may lie over one place, so that no sum leaves the 63 bits; both are checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hdtrain.diffusion.schedule import NoiseSchedule, timesteps_of
from hdtrain.diffusion.slerp import slerp
from hdtrain.errors import HdtrainError

Weights = Literal["uniform", "gaussian", "cosine"]
NoiseLevel = Literal["released_code"] | float
"""How noisy a step is: the released notebook's σ, or η of DDIM."""

FRACTION_BITS = 32
LARGEST = 2.0**15
"""Of a value in a window."""
MOST_WINDOWS = 2**16
"""Over one place."""
WIDTH = 0.8
"""Of the Gaussian weight exp(−d²/0.8²), d from the window's centre in [−1, 1]²."""


def profile(weights: Weights, window: int) -> Float64[Tensor, " w"]:
    """Weight of a window's places along one axis; the weight of a place is the product over both axes.

    `cosine` is sin², which alone of the three comes to nothing at a window's border: where windows do not agree, the
    mean has a step at the border of each of the others.
    """
    if weights == "uniform":
        return torch.ones(window, dtype=torch.float64)
    if weights == "cosine":
        return torch.sin(torch.pi * (torch.arange(window, dtype=torch.float64) + 0.5) / window) ** 2
    return torch.exp(-((torch.linspace(-1, 1, window, dtype=torch.float64) / WIDTH) ** 2))


def coverage(starts: Sequence[int], weights: Float64[Tensor, " w"], length: int) -> Float64[Tensor, " n"]:
    """Sum of the windows' weights along one axis; over the canvas it is the product over both axes.

    Raises:
        HdtrainError: more windows lie over one place than can be summed exactly.
    """
    window = len(weights)
    total = torch.zeros(length, dtype=torch.float64)
    number = torch.zeros(length, dtype=torch.int64)
    for start in starts:
        total[start : start + window] += weights
        number[start : start + window] += 1
    if int(number.max()) ** 2 > MOST_WINDOWS:
        raise HdtrainError(f"{int(number.max())}² windows over one place, at most {MOST_WINDOWS} can be; raise stride")
    return total


def window_conditions(
    embeddings: Float[Tensor, "r c *k d"], places: Int64[Tensor, "n 2"], window: int
) -> Float[Tensor, "n *k d"]:
    """What each window is conditioned on: between the embeddings of the four cells around its first place.

    With u = i/w and v = j/w the columns are interpolated by the fraction of v in both rows, then the rows by that of u
    (`slerp`). The last row and column are replicated.

    Args:
        embeddings: one a cell, raw, or several tokens, each interpolated by itself; a cell is `window` places high and
            wide.
        places: (i, j), row and column of each window's first place on the canvas.
        window: w, height and width of a window.
    """
    rows, columns = embeddings.shape[:2]
    cell = places.to(embeddings.device).div(window, rounding_mode="floor")
    share = (places.to(embeddings.device) - cell * window).to(embeddings.dtype) / window
    above, left = cell.unbind(1)
    below, right = (above + 1).clamp_max(rows - 1), (left + 1).clamp_max(columns - 1)
    each = (len(places),) + (1,) * (embeddings.ndim - 3)
    down, across = (part.reshape(each).expand(-1, *embeddings.shape[2:-1]) for part in share.unbind(1))
    top = slerp(embeddings[above, left], embeddings[above, right], across)
    bottom = slerp(embeddings[below, left], embeddings[below, right], across)
    return slerp(top, bottom, down)


def cut(canvas: Float[Tensor, "c h w"], places: Int64[Tensor, "n 2"], window: int) -> Float[Tensor, "n c w w"]:
    """The windows at these places."""
    return torch.stack([canvas[:, i : i + window, j : j + window] for i, j in places.tolist()])


def add_windows(
    total: Int64[Tensor, "c h w"],
    windows: Float[Tensor, "n c p p"],
    places: Int64[Tensor, "n 2"],
    weights: Float64[Tensor, " p"],
) -> None:
    """Add windows to an exact sum, in place; `mean_of` reads it.

    Args:
        total: Σ weight · value · 2³².
        windows: values.
        places: (i, j) of each window's first place in `total`.
        weights: of a window's places along one axis.

    Raises:
        HdtrainError: a value is not finite, or beyond ±2¹⁵.
    """
    if not bool((windows.abs() <= LARGEST).all()):  # false of NaN
        worst = float(windows.abs().max())
        raise HdtrainError(
            f"a window holds the value {worst:g}, expected at most {LARGEST:g} (latents are of the order of 1): the "
            "model gives nonsense here; try precision=fp32, a clip_latents of 3, or a model that has trained longer"
        )
    across, size = weights.to(windows.device), windows.shape[-1]
    scale = across[:, None] * across * 2.0**FRACTION_BITS
    for window, (i, j) in zip(windows, places.tolist(), strict=True):
        total[:, i : i + size, j : j + size] += (window * scale).round_().to(torch.int64)


def mean_of(
    total: Int64[Tensor, "c h w"], rows: Float64[Tensor, " h"], columns: Float64[Tensor, " w"]
) -> Float64[Tensor, "c h w"]:
    """The weighted mean of the windows that were added.

    Args:
        total: of `add_windows`, all windows in it.
        rows: `coverage` along the rows of `total`.
        columns: `coverage` along its columns.
    """
    weights = rows.to(total.device)[:, None] * columns.to(total.device)
    return total.double().mul_(2.0**-FRACTION_BITS).div_(weights)


@dataclass(frozen=True)
class CanvasStep:
    """One step of DDIM (Song et al. 2021, eq. 12)."""

    timestep: int
    alpha_bar: float
    """ᾱ here."""
    alpha_bar_after: float
    """ᾱ′ at the end of the step."""
    sigma: float
    """Standard deviation of the step's noise."""

    def after(
        self, z: Float[Tensor, "c h w"], z0: Float[Tensor, "c h w"], noise: Float[Tensor, "c h w"] | None
    ) -> Float[Tensor, "c h w"]:
        """√ᾱ′·ẑ_0 + √(1−ᾱ′−σ²)·ε̂ + σ·noise with ε̂ = (z_t − √ᾱ·ẑ_0)/√(1−ᾱ).

        Args:
            z: the canvas, or a part of it.
            z0: the averaged ẑ_0 there.
            noise: standard normal; not needed where σ = 0.
        """
        epsilon = (z - self.alpha_bar**0.5 * z0) / (1 - self.alpha_bar) ** 0.5
        direction = max(0.0, 1 - self.alpha_bar_after - self.sigma**2) ** 0.5
        mean = self.alpha_bar_after**0.5 * z0 + direction * epsilon
        return mean if noise is None or not self.sigma else mean + self.sigma * noise


def canvas_steps(schedule: NoiseSchedule, steps: int, noise: NoiseLevel) -> list[CanvasStep]:
    """The steps, from noise on: DDIM's timesteps, the last step goes to ᾱ_0, as everywhere here.

    Args:
        schedule: that the denoiser was trained with.
        steps: how many.
        noise: `released_code`: σ² = β_t·(1−ᾱ′)/(1−ᾱ) with the β_t of a single training timestep, however many a step
            leaps over; η: σ² = η²·(1−ᾱ′)/(1−ᾱ)·(1−ᾱ/ᾱ′) (Song et al. 2021, eq. 16), far more.

    Raises:
        ConfigError: `steps` does not fit the schedule.
    """
    timesteps = timesteps_of(schedule.ddim(), steps)
    alphas = schedule.alphas_cumprod.tolist()
    ends = [*(alphas[t] for t in timesteps), alphas[0]]
    return [
        CanvasStep(t, here, after, _sigma(noise, here, after, 1 - here / alphas[t - 1] if t else 1 - here))
        for t, (here, after) in zip(timesteps, pairwise(ends), strict=True)
    ]


def _sigma(noise: NoiseLevel, here: float, after: float, beta: float) -> float:
    if noise == "released_code":
        return (beta * (1 - after) / (1 - here)) ** 0.5
    return noise * ((1 - after) / (1 - here) * max(0.0, 1 - here / after)) ** 0.5
