"""What figures of a set of images are taken on: sums in fp64, and the features of at most so many images.

Every figure of `evaluate-images` is a function of two of these, so a set that was measured once and published gives the
very figures that its images give. `statistics.npz` holds `mu` and `sigma` too, for tools that read those.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from hdtrain.errors import DataError, ManifestError
from hdtrain.evaluation.moments import Moments, moments_of
from hdtrain.evaluation.subsets import drawn
from hdtrain.features.encoders import Encoder
from hdtrain.features.store import FeatureSet, FeatureStore
from hdtrain.formats.atomic import atomic_file
from hdtrain.formats.manifest import Manifest, check_files

FILE = "statistics.npz"
SYMMETRY_TOLERANCE = 1e-6
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Gaussian(Moments):
    """Mean and covariance as somebody else computed them; of how many images is not known."""

    given_mean: Float64[np.ndarray, " d"] = field(default_factory=lambda: np.zeros(0))
    given_covariance: Float64[np.ndarray, "d d"] = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """As given."""
        return self.given_mean

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """As given."""
        return self.given_covariance


@dataclass(frozen=True)
class Sample:
    """A set of images, or one class of it, as the figures want it."""

    num_images: int | None
    """None: not known."""
    moments: Moments | None
    """None: too few images to keep them."""
    features: Float32[np.ndarray, "m d"] | None
    """Of the images that were kept; None: mean and covariance alone are known."""


@dataclass(frozen=True)
class SetStatistics:
    """Of one set of images."""

    moments: Moments
    features: Float32[np.ndarray, "m d"]
    """Of the kept images, in the order of the set."""
    labels: Int64[np.ndarray, " m"]
    """Of the kept images; −1: unlabelled."""
    classes: list[str]
    class_counts: dict[str, int]
    class_moments: dict[str, Moments]
    """Of the classes that have images enough for a Fréchet distance of their own."""
    seed: int

    def whole(self) -> Sample:
        """All images."""
        return Sample(self.moments.n, self.moments, self.features)

    def of_class(self, name: str) -> Sample:
        """The images of one class."""
        kept = self.labels == self.classes.index(name)
        return Sample(self.class_counts[name], self.class_moments.get(name), self.features[kept])


def enough_for_frechet(dim: int) -> int:
    """Images that a class needs: twice the dimensions, since below the distance is mostly bias."""
    return 2 * dim


def measure(
    features: FeatureSet, classes: list[str] | None, store: FeatureStore, kept_features: int, seed: int
) -> SetStatistics:
    """Statistics of a set; every process calls it, and the main ranks alone get the kept features.

    Args:
        features: of all images.
        classes: their names in label order; None: unlabelled.
        store: where sums are kept.
        kept_features: how many images' features are kept; of more images so many are drawn.
        seed: of that draw.
    """
    moments, labels = moments_of(features, store), features.labels
    counts = {name: int((labels == label).sum()) for label, name in enumerate(classes or [])}
    enough = enough_for_frechet(features.dim)
    of_class = {
        name: moments_of(features, store, label) for label, name in enumerate(classes or []) if counts[name] >= enough
    }
    rows = drawn(np.arange(len(features) if store.shared.world.is_main else 0), seed, kept_features)
    return SetStatistics(moments, features.rows(rows), labels[rows], classes or [], counts, of_class, seed)


def made_with(encoder: Encoder, image_resolution: int | None) -> dict[str, Any]:
    """What two sets must share to be compared."""
    return {
        "name": encoder.name,
        "weights": encoder.weights_sha256,
        "resize": encoder.resize,
        "resolution": encoder.resolution,
        "image_resolution": image_resolution,
    }


def write_statistics(directory: Path, statistics: SetStatistics) -> Path:
    """`statistics.npz`; the same statistics give the same bytes."""
    moments, of_class = statistics.moments, statistics.class_moments
    dim = len(moments.total)
    arrays = {
        "n": np.array(moments.n),
        "total": moments.total,
        "outer": moments.outer,
        "mu": moments.mean,
        "sigma": moments.covariance,
        "features": statistics.features,
        "labels": statistics.labels,
        "class_names": np.array(list(of_class), str),
        "class_n": np.array([each.n for each in of_class.values()], np.int64),
        "class_total": np.array([each.total for each in of_class.values()]).reshape(-1, dim),
        "class_outer": np.array([each.outer for each in of_class.values()]).reshape(-1, dim, dim),
    }
    with atomic_file(directory / FILE) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    return directory / FILE


def read_statistics(directory: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> SetStatistics:
    """Published statistics, if they were made with the same encoder.

    Args:
        directory: where they are published.
        manifest: theirs.
        wanted: what `made_with` says of this run.

    Raises:
        ManifestError: altered, or made with another encoder, weights, or resize (named).
    """
    made = manifest.info["encoder"]
    differing = [
        f"{name.replace('_', ' ')} {_shown(made.get(name))}, here {_shown(value)}"
        for name, value in wanted.items()
        if made.get(name) != value
    ]
    if differing:
        raise ManifestError(
            f"{directory}: these statistics do not fit this run: {'; '.join(differing)}; use the same encoder and "
            "resolution, or give the images themselves"
        )
    check_files(directory, manifest)
    with np.load(directory / FILE, allow_pickle=False) as arrays:
        named = zip(
            arrays["class_names"].tolist(), arrays["class_n"], arrays["class_total"], arrays["class_outer"], strict=True
        )
        return SetStatistics(
            moments=Moments(int(arrays["n"]), arrays["total"], arrays["outer"]),
            features=arrays["features"],
            labels=arrays["labels"],
            classes=manifest.classes or [],
            class_counts=manifest.info["class_counts"],
            class_moments={name: Moments(int(n), total, outer) for name, n, total, outer in named},
            seed=manifest.info["seed"],
        )


def _shown(value: Any) -> str:
    return "images of their own size" if value is None else str(value)


def read_gaussian(path: Path, dim: int) -> Gaussian:
    """`mu` and `sigma` of an `.npz`, as pytorch-fid and others write them.

    Raises:
        DataError: of another size than the encoder's features, not finite, or no covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except _UNREADABLE as error:
        raise DataError(f"{path}: 'mu' and 'sigma' cannot be read: {error}") from None
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise DataError(
            f"{path}: mu {mean.shape} and sigma {covariance.shape}; the encoder's features want ({dim},) and "
            f"({dim}, {dim}): take the encoder that the file was made with"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: mu or sigma holds NaN or infinity; make the file again")
    largest = float(np.abs(covariance).max())
    if float(np.abs(covariance - covariance.T).max()) > SYMMETRY_TOLERANCE * largest or (np.diag(covariance) < 0).any():
        raise DataError(f"{path}: sigma is no covariance: it must be symmetric, with no negative variance")
    return Gaussian(1, mean, covariance, mean, covariance)
