"""Nearest images by pixels, over the 8 symmetries of the square: exact, so it does not matter how the work was cut up.

Pixels are integers, and their products and sums stay far below 2⁵³: in fp64 every distance is exact on any device, in
any order. Memory is one block of queries and one of references.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hdtrain.distributed.collectives import device

QUERY_BLOCK, REFERENCE_BLOCK = 256, 1024
SYMMETRIES = [(quarter_turns, mirrored) for quarter_turns in range(4) for mirrored in (False, True)]
"""Turned counter-clockwise by so many quarters, then mirrored left to right; the first changes nothing."""
_LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class PixelNeighbours:
    """The k nearest references of every query."""

    distance: Float[np.ndarray, "n k"]
    """Root mean square over pixels and channels, 0..255, ascending."""
    row: Int64[np.ndarray, " n"]
    """Of the nearest reference."""
    symmetry: Int64[np.ndarray, " n"]
    """Index into `SYMMETRIES`: how the reference has to be turned to lie on the query."""


def nearest_pixels(
    queries: UInt8[np.ndarray, "n p p 3"],
    references: UInt8[np.ndarray, "m p p 3"],
    k: int,
    leave_out: Int64[np.ndarray, " n"] | None = None,
) -> PixelNeighbours:
    """The `k` nearest references, each turned to its best; equally near ones in the order of the rows.

    Args:
        queries: RGB.
        references: at least `k` (one more with `leave_out`).
        k: how many.
        leave_out: row of the reference that is the query itself, a query.
    """
    blocks = range(0, len(queries), QUERY_BLOCK)
    keys = [
        _smallest_keys(queries[i : i + QUERY_BLOCK], references, k, None if leave_out is None else leave_out[i:])
        for i in blocks
    ]
    found = torch.cat([torch.empty((0, k), dtype=torch.int64), *keys]).numpy()
    packed, row = np.divmod(found, max(len(references), 1))
    squared, symmetry = np.divmod(packed, len(SYMMETRIES))
    values = max(int(np.prod(references.shape[1:])), 1)
    return PixelNeighbours(np.sqrt(squared / values), row[:, 0], symmetry[:, 0])


def _smallest_keys(queries: np.ndarray, references: np.ndarray, k: int, leave_out: np.ndarray | None) -> Tensor:
    """(squared distance, symmetry, row), packed into one integer: the order of keys breaks every tie."""
    turned = [_flat(_turn_back(queries, *symmetry)) for symmetry in SYMMETRIES]
    own = turned[0].square().sum(1, keepdim=True)
    best = torch.empty((len(queries), 0), dtype=torch.int64, device=own.device)
    for first in range(0, len(references), REFERENCE_BLOCK):
        theirs = _flat(references[first : first + REFERENCE_BLOCK])
        base = own + theirs.square().sum(1)
        products = torch.stack([query @ theirs.T for query in turned])
        squared = (base - 2 * products).to(torch.int64) * len(SYMMETRIES)
        squared += torch.arange(len(SYMMETRIES), device=own.device)[:, None, None]
        rows = torch.arange(first, first + len(theirs), device=own.device)
        keys = squared.amin(0) * len(references) + rows
        if leave_out is not None:
            keys[torch.from_numpy(leave_out[: len(keys), None]).to(own.device) == rows] = _LAST
        best = torch.cat([best, keys], 1).topk(min(k, best.shape[1] + len(theirs)), dim=1, largest=False).values
    return best.cpu()


def _turn_back(images: np.ndarray, quarter_turns: int, mirrored: bool) -> np.ndarray:
    """The inverse of a symmetry: ‖x − T(y)‖ = ‖T⁻¹(x) − y‖."""
    images = images[:, :, ::-1] if mirrored else images
    return np.rot90(images, -quarter_turns, axes=(1, 2))


def _flat(images: np.ndarray) -> Tensor:
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    return torch.from_numpy(flat).to(device()).double()
