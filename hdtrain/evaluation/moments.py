"""Mean and covariance of features from Σx and Σxxᵀ in fp64, merged in a fixed order.

The sums over a whole set are made in fixed groups of shards and kept, a file a group beside the features: a
group is one process's work, the merge is in their order, so any number of processes gets the same bits; and shards that
come later cost the groups that they stand in and no other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from hdtrain.distributed.collectives import device
from hdtrain.distributed.shared_work import SharedUnit
from hdtrain.features.store import FeatureSet, FeatureStore
from hdtrain.formats.atomic import canonical_json, sha256_bytes

BLOCK = 4096
SHARDS_PER_GROUP = 64
VERSION = 1


@dataclass(frozen=True)
class Moments:
    """Sums over n feature vectors."""

    n: int
    total: Float64[np.ndarray, " d"]
    outer: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """From features (n, d) of any float dtype, block after block."""
        dim = features.shape[1]
        blocks = (features[first : first + BLOCK] for first in range(0, len(features), BLOCK))
        return cls.merged((cls._of_block(block) for block in blocks), dim)

    @classmethod
    def _of_block(cls, block: Float[np.ndarray, "n d"]) -> "Moments":
        # torch, since its number of threads is set to one where bits must not depend on it; a copy is always aligned.
        x = torch.tensor(np.asarray(block)).to(device(), torch.float64)
        return cls(len(x), x.sum(0).cpu().numpy(), (x.T @ x).cpu().numpy())

    @classmethod
    def merged(cls, parts: Iterable["Moments"], dim: int) -> "Moments":
        """The sum of several, in the order given."""
        n, total, outer = 0, np.zeros(dim), np.zeros((dim, dim))
        for part in parts:
            n, total, outer = n + part.n, total + part.total, outer + part.outer
        return cls(n, total, outer)

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Sample mean."""
        return self.total / self.n

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """With N − 1; needs two samples."""
        return (self.outer - np.outer(self.total, self.total) / self.n) / (self.n - 1)


@dataclass(frozen=True)
class _Group:
    """Shards whose sums lie in one file: those of all images, or of one class."""

    path: Path
    features: FeatureSet
    shards: range
    wanted: dict[int, Bool[np.ndarray, " b"]] | None
    """Which images of each shard count; None: all."""

    def compute(self) -> Moments:
        return Moments.merged((Moments.of(self._rows(number)) for number in self.shards), self.features.dim)

    def _rows(self, number: int) -> np.ndarray:
        rows = self.features.shard(number)
        return rows if self.wanted is None else rows[self.wanted[number]]

    @property
    def num_images(self) -> int:
        """Of its shards."""
        return sum(self.features.samples[number] for number in self.shards)

    def is_whole(self) -> bool:
        """Whether the file is there with all its rows."""
        try:
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        dim = self.features.dim
        return isinstance(mapped, np.ndarray) and (mapped.shape, mapped.dtype) == ((dim + 2, dim), np.float64)

    def read(self) -> Moments | None:
        """The sums, or None where the file is missing, cut off or something else."""
        dim = self.features.dim
        try:
            sums = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if not isinstance(sums, np.ndarray) or (sums.shape, sums.dtype) != ((dim + 2, dim), np.float64):
            return None
        return Moments(int(sums[0, 0]), sums[1], sums[2:])


def moments_of(features: FeatureSet, store: FeatureStore, label: int | None = None) -> Moments:
    """Sums over a set, or over the images of one class: the same bits in every process, whoever made them.

    Reads the features once, a shard at a time; what was summed before, by this run or another, is not summed again.
    """
    groups = _groups(features, store, label)

    def make(number: int, _: None) -> None:
        sums = groups[number].compute()
        head = np.zeros((1, features.dim))
        head[0, 0] = sums.n
        store.write(groups[number].path, np.concatenate([head, sums.total[None], sums.outer]))

    units = [SharedUnit(each.path.stem, each.num_images, (each.path,), each.is_whole) for each in groups]
    store.shared.make_all("sums of features", units, make)
    return merged_moments(features, store, label)


def merged_moments(features: FeatureSet, store: FeatureStore, label: int | None = None) -> Moments:
    """What `moments_of` gave, in any process alone: it has been called before, by all of them."""
    return Moments.merged((group.read() or group.compute() for group in _groups(features, store, label)), features.dim)


def _groups(features: FeatureSet, store: FeatureStore, label: int | None) -> list[_Group]:
    count = len(features.paths)
    starts = range(0, count, SHARDS_PER_GROUP)
    return [_group(features, store, range(i, min(i + SHARDS_PER_GROUP, count)), label) for i in starts]


def _group(features: FeatureSet, store: FeatureStore, shards: range, label: int | None) -> _Group:
    names: list[Any] = [VERSION, *(features.paths[number].stem for number in shards)]
    wanted = None
    if label is not None:  # the same shards may be labelled otherwise in another set
        wanted = {number: features.labels_of(number) == label for number in shards}
        names += [np.packbits(mask).tobytes().hex() for mask in wanted.values()]
    name = sha256_bytes(canonical_json(names))[:40]
    return _Group(store.directory / f"moments-{name}.npy", features, shards, wanted)
