"""Resizing in float, as two matrix products an image: `rows @ image @ columns.T`.

Both rules are linear and separable, so this is exactly what they do: PIL's bicubic of mode `F` images, as clean-fid has
it (Parmar et al. 2022), and TensorFlow 1's bilinear, as torch-fidelity has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

CUBIC_A = -0.5
"""Free parameter of the cubic convolution kernel (Keys 1981), as PIL sets it."""
CUBIC_SUPPORT = 2.0


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=32)
def resize_matrix(size_in: int, size_out: int) -> Float64[Tensor, "size_out size_in"]:
    """Rows of weights, each summing to 1: output pixel i is row i times the input line."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = CUBIC_SUPPORT * stretch
    centres = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    last = np.minimum((centres + support + 0.5).astype(int), size_in)
    pixels = np.arange(size_in)
    weights = _cubic((pixels[None] - centres[:, None] + 0.5) / stretch)
    weights[(pixels[None] < first[:, None]) | (pixels[None] >= last[:, None])] = 0
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


@lru_cache(maxsize=32)
def tensorflow_matrix(size_in: int, size_out: int) -> Float64[Tensor, "size_out size_in"]:
    """As `resize_matrix`, for TensorFlow 1's bilinear: output i lies at i·in/out, neither centred nor antialiased."""
    places = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)  # fp32, as there
    low = places.astype(int)
    share = places - low.astype(np.float32)
    weights, rows = np.zeros((size_out, size_in)), np.arange(size_out)
    weights[rows, low] = 1 - share.astype(np.float64)
    weights[rows, np.minimum(low + 1, size_in - 1)] += share
    return torch.from_numpy(weights)


def resize_float(
    images: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n h w 3"], resolution: int
) -> Float[Tensor, "n 3 r r"]:
    """Images 0..255 NHWC to float32 NCHW of `resolution` × `resolution`, clipped to 0..255, not rounded."""
    return _resize(images, resolution, resize_matrix).clamp(0, 255)


def resize_tensorflow(
    images: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n h w 3"], resolution: int
) -> Float[Tensor, "n 3 r r"]:
    """As `resize_float`, by TensorFlow 1's bilinear rule."""
    return _resize(images, resolution, tensorflow_matrix)


def _resize(images: Tensor, resolution: int, matrix: Callable[[int, int], Tensor]) -> Tensor:
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    if (height, width) == (resolution, resolution):
        return x.contiguous()
    return matrix(height, resolution).to(x) @ x @ matrix(width, resolution).to(x).T


@dataclass(frozen=True)
class Resize:
    """A rule, and what results call it."""

    resize: Callable[[Tensor, int], Tensor]
    description: str


RESIZES = {
    "clean": Resize(resize_float, "PIL bicubic, antialiased, in float (clean-fid's)"),
    "tensorflow": Resize(resize_tensorflow, "TensorFlow 1's bilinear, not antialiased, in float (torch-fidelity's)"),
}
