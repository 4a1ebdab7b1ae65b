"""Time several ways of doing the same work, taking turns in one process, and judge ratios against goals.

Contestants take turns within a round and change places from round to round, so that what else the machine does meets
all of them. A ratio is taken within each round; the figures are medians with their range.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdtrain.errors import HdtrainError


class OutputsDifferError(HdtrainError):
    """Two contestants did not do the same work, so their times must not be compared."""


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one figure a round."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Contestant:
    """One way of doing the work. `prepare` and `check` are not timed; `check` gets what `run` returned.

    `run` may return its own seconds as `Timed`, where setting up must not count.
    """

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class Timed:
    """A result whose maker held the clock."""

    seconds: float
    result: Any = None


@dataclass(frozen=True)
class Goal:
    """`figure` should be at least `target`; `unit` is × for a ratio."""

    name: str
    figure: Spread
    target: float
    unit: str = "×"

    @property
    def reached(self) -> bool:
        """Whether the median is there."""
        return self.figure.median >= self.target


@dataclass
class Outcome:
    """One benchmark: rates in units a second by contestant, goals, and what a reader must know."""

    title: str
    unit: str
    num: int
    rates: dict[str, list[float]]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, ours: str, other: str) -> Spread:
        """How many times the rate of `other`, round by round."""
        return Spread.of([a / b for a, b in zip(self.rates[ours], self.rates[other], strict=True)])

    def expect(self, ours: str, other: str, target: float) -> None:
        """Add the goal `ours` ≥ `target` × `other`."""
        self.goals.append(Goal(f"{ours} / {other}", self.ratio(ours, other), target))


def compare(title: str, unit: str, num: int, contestants: Sequence[Contestant], rounds: int) -> Outcome:
    """Run every contestant `rounds` times over `num` units, after one round that is not counted.

    Raises:
        OutputsDifferError: from a contestant's `check`.
    """
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    gc.collect()
    gc.freeze()  # the objects of all imports need not be looked through before every turn
    try:
        for number in range(-1, rounds):
            turn = number % len(contestants)
            for contestant in (*contestants[turn:], *contestants[:turn]):
                seconds = _time(contestant)
                if number >= 0:
                    rates[contestant.name].append(num / seconds)
    finally:
        gc.unfreeze()
    return Outcome(title, unit, num, rates)


def _time(contestant: Contestant) -> float:
    contestant.prepare()
    gc.collect()
    started = time.perf_counter()
    result = contestant.run()
    seconds = time.perf_counter() - started
    if isinstance(result, Timed):
        seconds, result = result.seconds, result.result
    contestant.check(result)
    return seconds
