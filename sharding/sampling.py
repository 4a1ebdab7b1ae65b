"""Seeded subsets without replacement: even over the classes, or of everything."""

import math
from collections.abc import Sequence

import numpy as np

from hdtrain.config.shards import EvenSampling
from hdtrain.errors import DataError


def draw(population: Sequence[int], count: int, seed: Sequence[int]) -> list[int]:
    """`count` members in ascending order: a function of the population, the count and the seed alone."""
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    chosen = generator.permutation(len(population))[:count]
    return [population[position] for position in sorted(chosen.tolist())]


def draw_even(labels: Sequence[int | None], classes: Sequence[str] | None, sampling: EvenSampling) -> list[int]:
    """Positions in `labels` drawn by class, ascending; a class's draw does not depend on the other classes.

    Raises:
        DataError: unlabelled images, or a class with fewer images than asked for.
    """
    if classes is None or None in labels:
        raise DataError("'sample' draws by class, but some images have none; expected class folders in every source")
    members: list[list[int]] = [[] for _ in classes]
    for position, label in enumerate(labels):
        members[label].append(position)  # type: ignore[index]  # None was excluded above
    if sampling.mode == "equal":
        counts = [sampling.per_class or 0] * len(classes)
    else:
        counts = [math.floor((sampling.fraction or 0) * len(rows) + 0.5) for rows in members]
    short = [
        f"'{name}' has {len(rows)} of {max(1, count)}"
        for name, rows, count in zip(classes, members, counts, strict=True)
        if not 0 < count <= len(rows)
    ]
    if short:
        raise DataError(f"sample: too few usable images: {', '.join(short)}; ask for fewer, or add images")
    draws = [
        draw(rows, count, (sampling.seed, label))
        for label, (rows, count) in enumerate(zip(members, counts, strict=True))
    ]
    return sorted(position for rows in draws for position in rows)
