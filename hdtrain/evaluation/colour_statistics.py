"""How images are coloured or stained: optical density by channel and by stain, synthetic ones held against real ones.

OD = −log₁₀((I + 1) / 256) of each RGB channel (Beer and Lambert; + 1 keeps black finite). Concentrations of
haematoxylin and eosin are OD times the inverse of Ruifrok and Johnston's fixed matrix of stains (2001, Anal Quant Cytol
Histol 23:291) and never negative. Fixed, so that a figure means the same in every set; in images that aren't H&E it is
merely another way to mix three channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8

from hdtrain.data.exactly_once import iterate_shard
from hdtrain.features.parts import Arrays
from hdtrain.features.resize import resize_float
from hdtrain.formats.results import ColourStatistic
from hdtrain.formats.shards import ShardReader

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Rows: optical density of haematoxylin, eosin, DAB in red, green and blue."""
STATISTICS = tuple(
    f"{channel} {statistic}"
    for channel in ("OD red", "OD green", "OD blue", "haematoxylin", "eosin")
    for statistic in ("mean", "sd")
)
"""Of each image, over its pixels."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MIN_IMAGES = 5
EVERY_CLASS = "all"
_OPTICAL_DENSITY = -np.log10((np.arange(256) + 1) / 256)


def stain_statistics(images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n 10"]:
    """`STATISTICS` of each RGB image."""
    density = _OPTICAL_DENSITY[images].reshape(len(images), -1, 3)
    stains = np.maximum(density @ np.linalg.inv(STAINS)[:, :2], 0)
    channels = np.concatenate([density, stains], axis=2)
    both = np.stack([channels.mean(axis=1), channels.std(axis=1)], axis=2)
    return both.reshape(len(images), len(STATISTICS)).astype(np.float32)


def appearance_shard(reader: ShardReader, batch_size: int, resolution: int, small_px: int) -> Arrays:
    """`stain_statistics` at `resolution` and `pixels` at `small_px`, uint8, of every image of a shard.

    Raises:
        DataError: an image cannot be decoded.
    """
    keys: list[str] = []
    pixels, statistics = [np.empty((0, small_px, small_px, 3), np.uint8)], [np.empty((0, len(STATISTICS)), np.float32)]
    for batch in iterate_shard(reader, batch_size, resolution):
        keys += batch.keys
        statistics += [stain_statistics(image[None]) for image in batch.images]
        small = resize_float(torch.from_numpy(batch.images), small_px).round().to(torch.uint8)
        pixels.append(small.permute(0, 2, 3, 1).numpy())
    return {
        "keys": np.array(keys, str),
        "stain_statistics": np.concatenate(statistics),
        "pixels": np.concatenate(pixels),
    }


@dataclass(frozen=True)
class ColourComparer:
    """Sets of images against the training images of the same class, and over all classes."""

    classes: list[str]
    train: Arrays
    """`labels` and `stain_statistics` among them."""

    def compare(self, table: Arrays, against: bool = True) -> dict[str, dict[str, ColourStatistic]]:
        """Group (`all` or a class with images in `table`) to statistic; `against` False says nothing of differences."""
        groups: Mapping[str, int | None] = {EVERY_CLASS: None} | {name: k for k, name in enumerate(self.classes)}
        found = {}
        for group, label in groups.items():
            ours, theirs = (_of(each, label) for each in (table, self.train))
            if len(ours):
                found[group] = {
                    name: summary(ours[:, i], theirs[:, i] if against else None) for i, name in enumerate(STATISTICS)
                }
        return found


def summary(ours: np.ndarray, theirs: np.ndarray | None) -> ColourStatistic:
    """Mean, sd and quantiles over the images; Cohen's d and the Kolmogorov–Smirnov distance from the training images.

    d = (mean − mean of theirs) / √((sd² + sd² of theirs) / 2) (Cohen 1988).
    """
    values = np.asarray(ours, np.float64)
    enough = theirs is not None and min(len(ours), len(theirs)) >= MIN_IMAGES
    effect = ks = None
    if enough:
        other = np.asarray(theirs, np.float64)
        pooled = np.sqrt((values.var(ddof=1) + other.var(ddof=1)) / 2)
        effect = float((values.mean() - other.mean()) / pooled) if pooled > 0 else None
        ks = kolmogorov_smirnov(values, other)
    return ColourStatistic(
        n=len(values),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        quantiles=_quantiles(values),
        effect_size=effect,
        ks=ks,
    )


def kolmogorov_smirnov(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    """Largest difference of the two empirical distribution functions."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    shares = [np.searchsorted(each, both, side="right") / len(each) for each in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def _quantiles(values: Float64[np.ndarray, " n"]) -> list[float]:
    return [float(value) for value in np.quantile(values, QUANTILES)]


def _of(table: Arrays, label: int | None) -> np.ndarray:
    statistics = table["stain_statistics"]
    return statistics if label is None else statistics[table["labels"] == label]


def mean_ks(groups: Mapping[str, Mapping[str, ColourStatistic]]) -> float | None:
    """Mean KS distance over the statistics and over the classes that have one; None where no class has."""
    found = [
        statistic.ks
        for group, statistics in groups.items()
        if group != EVERY_CLASS
        for statistic in statistics.values()
        if statistic.ks is not None
    ]
    return float(np.mean(found)) if found else None
