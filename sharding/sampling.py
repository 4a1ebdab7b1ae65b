"""Seeded subsets without replacement: even over the classes, or of everything."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hdtrain.config.shards import EvenSampling
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest


def draw(population: NDArray[np.int64], count: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """`count` members, ascending: a function of the population, the count and the seed alone."""
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    chosen: NDArray[np.int64] = np.sort(generator.permutation(len(population))[:count])
    return population[chosen]


def draw_even(labels: NDArray[np.int32], classes: Sequence[str] | None, sampling: EvenSampling) -> NDArray[np.int64]:
    """Positions in `labels` (−1: none) drawn by class, ascending; a class's draw does not depend on the other classes.

    Raises:
        DataError: unlabelled images, or a class with fewer images than asked for.
    """
    if classes is None or (labels < 0).any():
        raise DataError(
            "'sample' draws by class, but some images have none; "
            "expected class folders or columns.label in every source"
        )
    members = [np.flatnonzero(labels == label) for label in range(len(classes))]
    if sampling.mode == "equal":
        counts = [sampling.per_class or 0] * len(classes)
    else:
        counts = [int((sampling.fraction or 0) * len(rows) + 0.5) for rows in members]
    nothing_is_right = sampling.mode == "stratified"  # a class may lie in patients of another split alone
    short = [
        f"'{name}' has {len(rows)} of {max(1, count)}"
        for name, rows, count in zip(classes, members, counts, strict=True)
        if not 0 < count <= len(rows) and not (nothing_is_right and not len(rows))
    ]
    if short:
        raise DataError(f"sample: too few usable images: {', '.join(short)}; ask for fewer, or add images")
    draws = [
        draw(rows, count, (sampling.seed, label))
        for label, (rows, count) in enumerate(zip(members, counts, strict=True))
    ]
    return np.sort(np.concatenate(draws))


def draw_samples(manifest: Manifest, count: int, seed: int) -> dict[int, list[int]]:
    """`count` samples of a published data set (all, if there are no more): shard number to numbers in the shard."""
    total = manifest.num_samples
    rows = np.random.Generator(np.random.PCG64(seed)).choice(total, min(count, total), replace=False)
    ends = np.cumsum([entry.samples for entry in manifest.shards])
    chosen: dict[int, list[int]] = {}
    for row in np.sort(rows).tolist():
        shard = int(np.searchsorted(ends, row, side="right"))
        chosen.setdefault(shard, []).append(row - (int(ends[shard - 1]) if shard else 0))
    return chosen
