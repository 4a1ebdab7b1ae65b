"""Images that are the same: exactly, up to the 8 symmetries of the square, or nearly.

*Exact*: every image gets a digest of its pixels in a canonical orientation: turned and mirrored copies share it.
*Near*: a 64-bit perceptual hash, the signs of the lowest frequencies of the luminance's cosine transform
(pHash; Zauner 2010). A flip changes the signs of the odd frequencies and a transpose transposes them, so the hashes of
all 8 orientations follow from one.
"""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from sharding.images import Pixels

T = TypeVar("T", bound=np.generic)
DIGEST_BYTES = 16
SYMMETRIES = 8
_CORNER_PX = 16
_SIDE = 8
_HASHED_SIZE_PX = 32
_MAX_PAIRS = 1 << 22


def turn(pixels: NDArray[T], symmetry: int) -> NDArray[T]:
    """A view of (h, w, …) in one of 8 orientations: rows (bit 0) and columns (1) reversed, then transposed (2)."""
    view = pixels[:: -1 if symmetry & 1 else 1, :: -1 if symmetry & 2 else 1]
    return view.swapaxes(0, 1) if symmetry & 4 else view


def canonical_digest(pixels: Pixels) -> tuple[bytes, int]:
    """The digest that all 8 orientations of uint8 (h, w, 3) share, and the symmetry that brings these pixels there.

    The orientation is the one with the least sums over the four corners, and if these tie over the four quadrants, so
    that as a rule one alone has to be hashed; of those that still tie (an image that is itself symmetric) the smallest
    digest counts.
    """
    height, width = pixels.shape[:2]  # of an oblong only the four orientations in which it stands
    tied = [s for s in range(SYMMETRIES) if height == width or (height < width) == bool(s & 4)]
    for side in (_CORNER_PX, max(height, width)):
        sums = _corner_sums(pixels, min(side, height // 2), min(side, width // 2))
        turned = {s: turn(sums, s).ravel().tolist() for s in tied}
        least = min(turned.values())
        tied = [s for s in tied if turned[s] == least]
        if len(tied) == 1:
            break
    return min((_digest(turn(pixels, s)), s) for s in tied)


def _corner_sums(pixels: Pixels, height: int, width: int) -> NDArray[np.uint64]:
    """Sums of the four corners of that size, (2, 2, 3)."""
    halves = np.stack([pixels[:height], pixels[-height:]])
    corners = np.stack([halves[:, :, :width], halves[:, :, -width:]], axis=1)
    return corners.sum(2, dtype=np.uint32).sum(2, dtype=np.uint64)


def _digest(pixels: Pixels) -> bytes:
    """Plane by plane: a turned plane is copied three times as fast as turned pixels."""
    digest = hashlib.sha256(b"%d %d" % pixels.shape[:2])
    for channel in range(pixels.shape[2]):
        digest.update(np.ascontiguousarray(pixels[..., channel]).data)
    return digest.digest()[:DIGEST_BYTES]


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits of uint8 RGB (h, w, 3): bit 8·u+v is set where the cosine coefficient (u, v) is positive; bit 0 is 0."""
    gray = Image.fromarray(pixels).convert("L").resize((_HASHED_SIZE_PX, _HASHED_SIZE_PX), Image.Resampling.BOX)
    low = dctn(np.asarray(gray, np.float32), norm="ortho")[:_SIDE, :_SIDE]
    bits = low.ravel() > 0
    bits[0] = False
    return int(np.packbits(bits, bitorder="little").view("<u8")[0])


def hashes_of_orientations(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The perceptual hashes (n) of the 8 orientations, (8, n)."""
    bits = np.unpackbits(np.ascontiguousarray(hashes, "<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    grid = bits.reshape(-1, _SIDE, _SIDE)
    odd = np.arange(_SIDE) % 2
    turned = []
    for symmetry in range(SYMMETRIES):
        flips = (odd[:, None] * (symmetry & 1) + odd[None] * (symmetry >> 1 & 1)) % 2
        view = grid ^ flips.astype(np.uint8)
        view = view.swapaxes(1, 2) if symmetry & 4 else view
        turned.append(np.packbits(view.reshape(-1, 64), axis=1, bitorder="little").view("<u8")[:, 0])
    return np.stack(turned)


def first_of_equal(digests: NDArray[np.void]) -> NDArray[np.int64]:
    """For every digest (n of 16 bytes) the index of the first equal one; its own where there is none before it."""
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 0], halves[:, 1]))
    ordered = halves[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[new][np.cumsum(new) - 1] if len(order) else order
    return first


def near_pairs(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int, int]]:
    """(earlier, later, distance) of all pairs within `max_distance` bits in any of the 8 orientations, may repeat.

    Two hashes that differ in d bits agree on one of d + 1 bands of bits, so only hashes that share a band are compared.
    """
    turned = hashes_of_orientations(hashes)
    edges = np.linspace(0, 64, max_distance + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        mask = np.uint64(((1 << high - low) - 1) << low)
        order = np.argsort(hashes & mask, kind="stable")
        bands = (hashes & mask)[order]
        for variant in turned:
            left, right = (np.searchsorted(bands, variant & mask, side) for side in ("left", "right"))
            yield from _compare(hashes, variant, order, left, right - left, max_distance)


def _compare(
    hashes: NDArray[np.uint64],
    variant: NDArray[np.uint64],
    order: NDArray[np.int64],
    left: NDArray[np.int64],
    counts: NDArray[np.int64],
    max_distance: int,
) -> Iterator[tuple[int, int, int]]:
    """Compare every `variant[i]` with `hashes[order[left[i]:left[i] + counts[i]]]`, a bounded number at a time."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        base = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, base + _MAX_PAIRS, side="right")))
        n = counts[start:stop]
        ours = np.repeat(np.arange(start, stop), n)
        within = np.arange(len(ours)) - np.repeat(np.cumsum(n) - n, n)
        theirs = order[np.repeat(left[start:stop], n) + within]
        keep = theirs < ours
        ours, theirs = ours[keep], theirs[keep]
        distance = np.bitwise_count(variant[ours] ^ hashes[theirs])
        close = distance <= max_distance
        yield from zip(theirs[close].tolist(), ours[close].tolist(), distance[close].tolist(), strict=True)
        start = stop
