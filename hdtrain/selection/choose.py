"""The choice itself: global, per class, a function of the candidates alone and not of how they were sharded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

from hdtrain.errors import DataError


@dataclass(frozen=True)
class Candidates:
    """One row a candidate, in any order."""

    keys: np.ndarray
    labels: Int64[np.ndarray, " n"]
    target_distance: Float[np.ndarray, " n"]
    """Squared distance to the centroid of the class that the candidate was made for."""
    passes: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Choice:
    """Rows of the chosen candidates, class after class, best first; and how many a class had to be filled up."""

    rows: Int64[np.ndarray, " m"]
    shortfall: dict[str, int]


def wanted(ratio: float, num_real: int) -> int:
    """n = round(ρ·N_y)."""
    return round(ratio * num_real)


def choose_selective(
    candidates: Candidates,
    classes: Sequence[str],
    num_real: Sequence[int],
    ratio: float,
    shortfall: Literal["stop", "fill"],
) -> Choice:
    """Per class the nearest to the centroid among those that pass, ties by key; `fill` adds the nearest of the others.

    Raises:
        DataError: too few pass and `shortfall` is `stop`, or the whole pool is too small; with the counts per class.
    """
    _check_pool(candidates, classes, num_real, ratio)
    rows, short = [], {}
    for label, name in enumerate(classes):
        n = wanted(ratio, num_real[label])
        own = np.flatnonzero(candidates.labels == label)
        order = np.lexsort((candidates.keys[own], candidates.target_distance[own], ~candidates.passes[own]))
        rows.append(own[order[:n]])
        short[name] = max(0, n - int(candidates.passes[own].sum()))
    if shortfall == "stop" and any(short.values()):
        lines = [
            f"{name}: {wanted(ratio, num_real[label]) - short[name]} of {wanted(ratio, num_real[label])} pass"
            for label, name in enumerate(classes)
            if short[name]
        ]
        raise DataError(
            f"ratio {ratio:g}: too few candidates pass the gates ({'; '.join(lines)}); "
            "sample more, loosen the gates, set shortfall: fill, or set top_up (higher)"
        )
    return Choice(np.concatenate(rows), short)


def choose_random(
    candidates: Candidates, classes: Sequence[str], num_real: Sequence[int], ratio: float, seed: int
) -> Choice:
    """Per class as many, drawn uniformly without replacement and without gates; smaller ratios are part of larger ones.

    The candidates must be those that were sampled beforehand: how many a top-up adds depends on the gates.

    Raises:
        DataError: the pool is too small.
    """
    _check_pool(candidates, classes, num_real, ratio)
    rows = []
    for label in range(len(classes)):
        own = np.flatnonzero(candidates.labels == label)
        own = own[np.argsort(candidates.keys[own])]
        rows.append(np.random.default_rng([seed, label]).permutation(own)[: wanted(ratio, num_real[label])])
    return Choice(np.concatenate(rows), dict.fromkeys(classes, 0))


def _check_pool(candidates: Candidates, classes: Sequence[str], num_real: Sequence[int], ratio: float) -> None:
    check_pool(np.bincount(candidates.labels, minlength=len(classes)).tolist(), classes, num_real, ratio)


def check_pool(num_candidates: Sequence[int], classes: Sequence[str], num_real: Sequence[int], ratio: float) -> None:
    """Refuse a ratio that the candidates cannot give, or that gives nothing.

    Raises:
        DataError: with the counts per class.
    """
    if not any(wanted(ratio, count) for count in num_real):
        raise DataError(
            f"ratio {ratio:g}: of at most {max(num_real)} real images a class that is none; choose a larger one"
        )
    lines = [
        f"{name}: {have} candidates, {n} wanted"
        for name, have, n in zip(classes, num_candidates, (wanted(ratio, count) for count in num_real), strict=True)
        if have < n
    ]
    if lines:
        raise DataError(f"ratio {ratio:g}: the pool is too small ({'; '.join(lines)}); sample more images a class")
