"""B6: clean-fid's resize, against Pillow's own in float."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from bench.compare import Contestant, Outcome, OutputsDifferError, compare
from hdtrain.features.inception import INPUT_PX
from hdtrain.features.resize import resize_float

OURS, PILLOW = "ours, one thread", "Pillow, mode F"
TOLERANCE = 1e-4
"""On 0..255."""
BATCH = 32
OTHER_SIZES_PX = (64, 150, 224, 512)


def ours(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) to float32 (n, 3, 299, 299)."""
    parts = [resize_float(torch.from_numpy(images[i : i + BATCH]), INPUT_PX) for i in range(0, len(images), BATCH)]
    return torch.cat(parts).numpy()


def pillow(images: np.ndarray) -> np.ndarray:
    """The same, a channel at a time: clean-fid's rule."""
    size, rule = (INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC
    planes = [
        [np.asarray(Image.fromarray(image[..., channel].astype(np.float32)).resize(size, rule)) for channel in range(3)]
        for image in images
    ]
    return np.asarray(planes).clip(0, 255)


def difference(images: np.ndarray) -> float:
    """The greatest, on 0..255.

    Raises:
        OutputsDifferError: greater than `TOLERANCE`.
    """
    found = float(np.abs(ours(images) - pillow(images)).max())
    if found > TOLERANCE:
        raise OutputsDifferError(f"{images.shape[1]} px to {INPUT_PX}: {found:.1e} on 0..255, allowed {TOLERANCE}")
    return found


def run(patches: Sequence[np.ndarray], num: int, rounds: int) -> Outcome:
    """Time both on `num` images of 256 pixels; compare them on images of other sizes too."""
    images = np.stack([patches[number % len(patches)] for number in range(num)])
    others = {
        side: np.stack([np.asarray(Image.fromarray(patch).resize((side, side))) for patch in patches[:4]])
        for side in OTHER_SIZES_PX
    }
    found = {images.shape[1]: difference(images[:BATCH])} | {side: difference(each) for side, each in others.items()}
    torch.set_num_threads(1)  # as Pillow has: both are given one core
    contestants = [Contestant(OURS, partial(ours, images)), Contestant(PILLOW, partial(pillow, images))]
    outcome = compare(f"resize of {images.shape[1]} px to {INPUT_PX}", "images/s/core", num, contestants, rounds)
    ratio = outcome.ratio(OURS, PILLOW)
    outcome.notes.append(f"{OURS} / {PILLOW}: {ratio.median:.2g} ({ratio.least:.2g}–{ratio.greatest:.2g}) ×")
    differences = ", ".join(f"{side} px {value:.1e}" for side, value in found.items())
    outcome.notes.append(f"greatest difference on 0..255, goal ≤ {TOLERANCE}, reached: {differences}")
    return outcome
