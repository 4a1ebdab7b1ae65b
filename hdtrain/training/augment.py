"""Augmentations on the device, a function of the position in the order like every other draw."""

import torch
from jaxtyping import Float
from torch import Tensor

from hdtrain.distributed.seeds import Draws


def random_symmetry(x: Float[Tensor, "n c s s"], draws: Draws) -> Float[Tensor, "n c s s"]:
    """One of the 8 symmetries of the square for every image: tissue has no up."""
    which = draws.integers("symmetry", 8)
    out = x.clone()
    for symmetry in range(1, 8):
        chosen = which == symmetry
        if chosen.any():
            turned = torch.rot90(x[chosen], symmetry % 4, (2, 3))
            out[chosen] = turned.flip(3) if symmetry >= 4 else turned
    return out


def conventional(x: Float[Tensor, "n 3 s s"], draws: Draws) -> Float[Tensor, "n 3 s s"]:
    """Random resized crop (60–100 % of the side) and colour jitter: brightness, contrast, saturation ± 20 %."""
    n = len(x)
    side = 0.6 + 0.4 * draws.uniform("crop-side")
    centre = (2 * draws.uniform("crop-centre", (2,)) - 1) * (1 - side)[:, None]
    affine = torch.zeros(n, 2, 3, device=x.device)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = centre
    grid = torch.nn.functional.affine_grid(affine, list(x.shape), align_corners=False)
    x = torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    factor = 0.8 + 0.4 * draws.uniform("jitter", (3,))
    brightness, contrast, saturation = (factor[:, i].view(n, 1, 1, 1) for i in range(3))
    x = (x + 1) * brightness - 1
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * contrast + mean
    gray = x.mean(dim=1, keepdim=True)
    return ((x - gray) * saturation + gray).clamp(-1, 1)
