"""From stain concentrations to colours: the scanners' stain matrices, Beer-Lambert, and the classes' common palette."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from toy_corpus.drawing import Array

STRATA = 64
"""Tone strata of `repaint`; within one, hues are ranked."""


@dataclass(frozen=True)
class Scanner:
    """How one source stains, scans and stores."""

    stains: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Optical densities in RGB of haematoxylin and of eosin at concentration 1."""
    slides: tuple[int, ...]
    """Slide numbers, distinct between sources."""
    blur: float = 0.0
    """Standard deviation in units of 1/64 of the patch."""
    noise: float = 0.0
    """Standard deviation in grey levels."""
    suffix: str = "png"
    mode: str = "RGB"


SCANNERS = {
    "source_a": Scanner(((1.00, 1.25, 0.55), (0.16, 0.98, 0.42)), tuple(range(11, 19)), blur=0.3, noise=1.0),
    "source_b": Scanner(((1.25, 1.15, 0.45), (0.10, 0.85, 0.62)), tuple(range(21, 29)), blur=0.6, suffix="jpg"),
    "source_c": Scanner(
        ((0.85, 1.20, 0.70), (0.28, 0.92, 0.35)), tuple(range(31, 39)), blur=0.45, noise=2.0, mode="RGBA"
    ),
    "labelled": Scanner(((1.10, 1.25, 0.62), (0.18, 0.90, 0.55)), tuple(range(1, 10)), noise=0.8),
}


def slide_stains(scanner: Scanner, rng: np.random.Generator) -> Array:
    """The source's stain matrix (2, 3) as one slide shows it: hue and strength vary a little."""
    return np.array(scanner.stains) * rng.normal(1, 0.04, (2, 3)) * rng.normal(1, 0.08, (2, 1))


def to_rgb(haematoxylin: Array, eosin: Array, stains: Array, scanner: Scanner, rng: np.random.Generator) -> Image.Image:
    """Beer-Lambert, I = 255 exp(-C·S), with this patch's stain strength, then the scanner's blur and noise."""
    strength = rng.normal(1, 0.04, 2)
    concentrations = np.stack([haematoxylin * strength[0], eosin * strength[1]], axis=-1)
    rgb = 255 * np.exp(-np.einsum("yxs,sc->yxc", concentrations, stains))
    if scanner.blur:
        rgb = gaussian_filter(rgb, (*(2 * [scanner.blur * len(rgb) / 64]), 0))
    if scanner.noise:
        rgb += rng.normal(0, scanner.noise, rgb.shape)
    image = Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))
    return image.convert(scanner.mode)


def encode(image: Image.Image, scanner: Scanner) -> bytes:
    """The file's bytes in the source's own format."""
    stream = io.BytesIO()
    if scanner.suffix == "jpg":
        image.save(stream, "JPEG", quality=92)
    else:
        image.save(stream, "PNG")
    return stream.getvalue()


def random_palette(count: int, rng: np.random.Generator) -> Array:
    """`count` (haematoxylin, eosin) pairs of one made-up patch: void, tissue, nuclei and what lies between them.

    It is drawn without knowing the class, so colours alone cannot tell classes apart.
    """
    void, nuclear = rng.uniform(0.24, 0.40), rng.uniform(0.15, 0.25)
    knots = np.array([0, 0.85 * void, 1.15 * void, 1 - 1.25 * nuclear, 1 - 0.75 * nuclear, 1])
    pink, dark = rng.uniform(0.42, 0.55), rng.uniform(0.85, 1.1)
    rank = (np.arange(count) + 0.5) / count
    eosin = np.interp(rank, knots, [0.04, 0.12, 0.6 * pink, 1.25 * pink, 0.8 * pink, 0.9 * pink])
    haematoxylin = np.interp(rank, knots, [0.02, 0.04, 0.08, 0.22, 0.7 * dark, 1.2 * dark])
    spread = rng.normal(0, 0.06, count)
    return np.stack([haematoxylin * (1 + spread), eosin * (1 - 2 * spread)], axis=1)


def repaint(haematoxylin: Array, eosin: Array, palette: Array) -> tuple[Array, Array]:
    """Give the maps exactly the palette's colours: pixels and palette are paired by tone, then by hue within a tone.

    The result is a permutation of `palette`, so its joint histogram is the palette's and nothing of the drawing's.
    """
    pixels = np.stack([haematoxylin.ravel(), eosin.ravel()], axis=1)
    painted = np.empty_like(pixels)
    painted[_ranking(pixels)] = palette[_ranking(palette)]
    return painted[:, 0].reshape(haematoxylin.shape), painted[:, 1].reshape(eosin.shape)


def _ranking(pairs: Array) -> NDArray[np.int_]:
    """Indices by tone stratum and, within a stratum, by the share of haematoxylin."""
    tone, hue = pairs[:, 0] + 0.6 * pairs[:, 1], pairs[:, 0] - pairs[:, 1]
    stratum = np.empty(len(pairs), dtype=int)
    stratum[np.argsort(tone, kind="stable")] = np.arange(len(pairs)) * STRATA // len(pairs)
    return np.lexsort((hue, stratum))
