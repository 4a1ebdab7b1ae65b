"""Images worth a look: those that are nearest to a training image, and those that went wrong."""

import numpy as np
from jaxtyping import Bool, Float, Int64

from hdtrain.evaluation.memorisation import SPACES, Thresholds, nearest_pairs
from hdtrain.evaluation.pixels import SYMMETRIES
from hdtrain.features.parts import Arrays
from hdtrain.formats.results import CANDIDATES, YARDSTICK, Failure, NearestPair

NUM_PAIRS = 24
"""In each space."""


def pool_of(sets: dict[str, Arrays]) -> Arrays:
    """Every synthetic image once, by key: the candidates or, without those, all arms' images. Empty without any."""
    names = [CANDIDATES] if CANDIDATES in sets else [name for name in sets if name != YARDSTICK]
    if not names:
        return {}
    pool = {column: np.concatenate([sets[name][column] for name in names]) for column in sets[names[0]]}
    _, once = np.unique(pool["keys"], return_index=True)
    return {column: values[once] for column, values in pool.items()}


def closest_pairs(pool: Arrays, train: Arrays, classes: list[str], thresholds: Thresholds) -> list[NearestPair]:
    """In each space the pairs that are relatively nearest, evenly over the classes."""
    pairs = []
    for space in SPACES:
        flags = thresholds.flags(pool, space)
        for row in nearest_pairs(pool[f"{space}_relative"], pool["labels"], NUM_PAIRS):
            turns, mirrored = SYMMETRIES[pool["symmetry"][row]] if space == "pixels" else (0, False)
            pairs.append(
                NearestPair(
                    synthetic=str(pool["keys"][row]),
                    real=str(train["keys"][pool[f"{space}_row"][row]]),
                    label=classes[pool["labels"][row]],
                    space=space,
                    distance=float(pool[f"{space}_distance"][row]),
                    relative=float(pool[f"{space}_relative"][row]),
                    memorised=bool(flags[row]),
                    quarter_turns=turns,
                    mirrored=mirrored,
                )
            )
    return pairs


def failures(pool: Arrays, classes: list[str], count: int) -> list[Failure]:
    """About `count` that the judge is surest of being another class, and as many farthest from their centroid.

    The centroid of a class is the mean of the real training images' unit features, as in selection.
    """
    labels = pool["labels"]
    found = []
    if "probabilities" in pool:
        taken, sure = pool["probabilities"].argmax(axis=1), pool["probabilities"].max(axis=1)
        found += [
            Failure(
                synthetic=str(pool["keys"][row]),
                label=classes[labels[row]],
                kind="judge",
                taken_for=classes[taken[row]],
                confidence=float(sure[row]),
            )
            for row in largest_of_each_class(sure, labels, count, taken != labels)
        ]
    own, nearest = pool["own_distance"], pool["nearest_class"]
    return found + [
        Failure(
            synthetic=str(pool["keys"][row]),
            label=classes[labels[row]],
            kind="far",
            taken_for=classes[nearest[row]],
            distance=float(own[row]),
        )
        for row in largest_of_each_class(own, labels, count, np.isfinite(own))
    ]


def largest_of_each_class(
    values: Float[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], count: int, among: Bool[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """Rows of about `count` largest values among some rows, evenly over the classes, largest first."""
    present = np.unique(labels)
    per_class = -(-count // max(len(present), 1))
    rows = [np.empty(0, np.int64)]
    for label in present:
        own = np.flatnonzero((labels == label) & among)
        rows.append(own[np.argsort(-values[own], kind="stable")[:per_class]])
    chosen = np.concatenate(rows)
    return chosen[np.argsort(-values[chosen], kind="stable")]
