"""Which images of one set are near-copies of an image of another, in feature space; sets of any size.

As `hdtrain.evaluation.memorisation` has it: the distance to the nearest real image over the mean distance to the next
nearest, flagged below what real images show among themselves. Resident are one shard of each set and one block of their
distances; the real images' own quantile is taken on a sample of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from hdtrain.distributed.shared_work import SharedUnit
from hdtrain.evaluation.memorisation import MIN_REFERENCE, QUANTILE, nearest_features, num_neighbours, relative_distance
from hdtrain.evaluation.statistics import share_metric
from hdtrain.evaluation.subsets import drawn
from hdtrain.features.store import FeatureSet, FeatureStore
from hdtrain.formats.atomic import canonical_json, sha256_bytes
from hdtrain.formats.comparison import NearCopy
from hdtrain.formats.results import Metric

VERSION = 1
QUERY_BLOCK = 1024
MAX_OWN = 10_000
"""Real images whose distance to the others of their set is taken: enough for a quantile of 1 %."""
NUM_PAIRS = 24


@dataclass(frozen=True)
class NearCopies:
    """What was found."""

    threshold: float
    """Of the relative distance: the real images' own 1 % quantile."""
    num_own: int
    """Real images that it was taken on."""
    num_neighbours: int
    distance: Float64[np.ndarray, " n"]
    """Of every fake image to its nearest real one, between unit vectors."""
    relative: Float64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    """Of that real image."""

    def metric(self) -> Metric:
        """`memorised_share`, with Wilson's interval."""
        rule = (
            "in features: nearest real image over the mean of the next nearest, below the "
            f"{QUANTILE:.0%} quantile of {self.num_own:,} real images ({self.threshold:.3g})"
        )
        return share_metric(self.relative < self.threshold, rule)

    def pairs(self, fake: FeatureSet, real: FeatureSet) -> list[NearCopy]:
        """The relatively nearest, nearest first."""
        nearest = np.argsort(self.relative, kind="stable")[:NUM_PAIRS]
        fakes, reals = fake.keys, real.keys
        return [
            NearCopy(
                fake=fakes[row],
                real=reals[self.row[row]],
                distance=float(self.distance[row]),
                relative=float(self.relative[row]),
                memorised=bool(self.relative[row] < self.threshold),
            )
            for row in nearest.tolist()
        ]


def find_near_copies(real: FeatureSet, fake: FeatureSet, store: FeatureStore, seed: int) -> NearCopies | None:
    """Every process calls it, and gets what whoever made it found; None with fewer than 20 real images.

    Args:
        real: what may have been copied.
        fake: the images that may be copies.
        store: keeps what is found, a file a shard of `fake`.
        seed: draws the real images that the quantile is taken on.
    """
    if len(real) < MIN_REFERENCE:
        return None
    k = num_neighbours(len(real))
    own = drawn(np.arange(len(real)), seed, MAX_OWN)
    units = _units(real, fake, own, k, store.directory)
    shared = [
        SharedUnit(unit.path.stem, unit.samples, (unit.path,), partial(_is_whole, unit.path, unit.samples))
        for unit in units
    ]
    store.shared.make_all("near-copies", shared, lambda n, _: store.write(units[n].path, units[n].compute()))
    found, of_fake = [np.load(unit.path, allow_pickle=False) for unit in units], len(fake.paths)
    ours, theirs = (np.concatenate([np.empty((0, 3)), *part]) for part in (found[:of_fake], found[of_fake:]))
    threshold = float(np.quantile(theirs[:, 1], QUANTILE))
    return NearCopies(threshold, len(own), k - 1, ours[:, 0], ours[:, 1], ours[:, 2].astype(np.int64))


@dataclass(frozen=True)
class _Unit:
    """Some queries against all real images, one file."""

    path: Path
    samples: int
    compute: Callable[[], Float64[np.ndarray, "n 3"]]


def _units(real: FeatureSet, fake: FeatureSet, own: Int64[np.ndarray, " m"], k: int, folder: Path) -> list[_Unit]:
    """The shards of `fake`, then stretches of the real images' own."""
    references = [path.stem for path in real.paths]

    def path(*queries: object) -> Path:
        return folder / f"near-{sha256_bytes(canonical_json([VERSION, queries, k, references]))[:40]}.npy"

    units = [
        _Unit(path("fake", file.stem), samples, partial(_of_shard, fake, number, real, k))
        for number, (file, samples) in enumerate(zip(fake.paths, fake.samples, strict=True))
    ]
    parts = [own[first : first + QUERY_BLOCK] for first in range(0, len(own), QUERY_BLOCK)]
    return units + [_Unit(path("own", part.tolist()), len(part), partial(_of_real, real, part, k)) for part in parts]


def _is_whole(path: Path, samples: int) -> bool:
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).shape == (samples, 3))
    except (OSError, ValueError, EOFError):
        return False


def _of_shard(fake: FeatureSet, number: int, real: FeatureSet, k: int) -> Float64[np.ndarray, "n 3"]:
    return _columns(*nearest_features(fake.shard(number), real.blocks, k))


def _of_real(real: FeatureSet, rows: Int64[np.ndarray, " n"], k: int) -> Float64[np.ndarray, "n 3"]:
    return _columns(*nearest_features(real.rows(rows), real.blocks, k, rows))


def _columns(distances: Float64[np.ndarray, "n k"], row: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 3"]:
    """Distance, relative distance and row of the nearest real image."""
    return np.stack([distances[:, 0], relative_distance(distances), row], axis=1)
