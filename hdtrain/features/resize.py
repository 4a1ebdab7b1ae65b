"""Bicubic, antialiased resizing in float, as clean-fid does it (Parmar et al. 2022): two matrix products an image.

PIL's resize of mode `F` images is linear and separable, so it is exactly `rows @ image @ columns.T`.
"""

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


def resize_float(
    images: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n h w 3"], resolution: int
) -> Float[Tensor, "n 3 r r"]:
    """Images 0..255 NHWC to float32 NCHW of `resolution` × `resolution`, clipped to 0..255, not rounded."""
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    if (height, width) == (resolution, resolution):
        return x.contiguous()
    rows = resize_matrix(height, resolution).to(x)
    columns = resize_matrix(width, resolution).to(x)
    return (rows @ x @ columns.T).clamp(0, 255)
