"""More candidates of the classes of which too few pass the gates, by a rule of counts: every process has the same."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from hdtrain.config.synthesis import SelectConfig
from hdtrain.selection.choose import wanted
from hdtrain.selection.score import Scorer, Scores

Make = Callable[[int, list[int], list[int]], list[Path]]
"""From how many shards were made before, how many candidates of each class there are, and how many more of each are
wanted, to the new shards: they are there, on whichever rank asks, when it returns."""


def top_up(
    config: SelectConfig, scorer: Scorer, scores: Scores, at_least: int, make: Make
) -> tuple[Scores, list[Path]]:
    """Make and score more, round by round, until as many pass as the largest ratio wants or a class has its limit.

    Args:
        config: `top_up` is L.
        scorer: has scored the candidates that there are.
        scores: of these.
        at_least: images of a short class that a round makes: a batch costs about as much as one image.
        make: them.

    Returns:
        All scores, and the new shards.
    """
    assert config.top_up is not None
    n = [wanted(max(config.ratios), count) for count in scores.num_real]
    limits = [most_candidates(config.top_up, have) for have in scores.per_class]
    shards: list[Path] = []
    while any(more := how_many_more(scores.per_class, scores.passed, n, limits, at_least)):
        made = make(len(shards), scores.per_class, more)
        shards, scores = shards + made, scorer.add_topped_up(made)
    return scores, shards


def most_candidates(top_up: float, original: int) -> int:
    """The most candidates of a class: ⌊L·original⌋."""
    return math.floor(round(top_up * original, 6))


def how_many_more(
    candidates: Sequence[int], passed: Sequence[int], wanted: Sequence[int], limits: Sequence[int], at_least: int
) -> list[int]:
    """Images of each class that the next round makes; none at all: there is nothing more to do.

    A class is short when fewer than wanted pass. Then the share that passed so far says how many will be needed; where
    none passed, as many again are made. A round makes `at_least` so many of a short class, and no class gets more than
    its limit.
    """
    more = []
    for have, good, n, limit in zip(candidates, passed, wanted, limits, strict=True):
        missing = max(0, n - good)
        estimate = math.ceil(missing * have / good) if good else have
        more.append(min(max(estimate, at_least), max(0, limit - have)) if missing else 0)
    return more
