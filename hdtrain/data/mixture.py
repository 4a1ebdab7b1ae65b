"""Several sources in fixed proportions: which source takes a position, and which of its own samples comes then.

Both are functions of (seed, position). The choice of the source follows a cycle of exact integer quotas: in any prefix
every source stands within one image of its share. Each source runs through its own order without replacement, however
often it has begun anew: a small source repeats, a large one does not.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from hdtrain.data.order import Order, Places, Positions, SampleOrder, as_positions, groups
from hdtrain.errors import DataError

MAX_CYCLE = 100_000
"""Longest cycle. Weights that need a longer one are rounded to hundred-thousandths."""
WINDOW = 1024
"""Positions of a cycle that are shuffled together: what one lookup has to make."""
SHUFFLE_PASSES = 4


def quotas_of(weights: Sequence[float]) -> list[int]:
    """How many positions of a cycle each source takes: the shortest cycle that is exact, if that is short enough.

    Raises:
        DataError: a weight is not positive, or too small beside the others.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise DataError(f"weights must be greater than 0, got {list(weights)}; leave out a source that has none")
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    cycle = math.lcm(*(share.denominator for share in shares))
    if cycle <= MAX_CYCLE:
        return [int(share * cycle) for share in shares]
    quotas = [math.floor(share * MAX_CYCLE) for share in shares]
    remainders = [share * MAX_CYCLE - quota for share, quota in zip(shares, quotas, strict=True)]
    for index in sorted(range(len(quotas)), key=lambda i: (-remainders[i], i))[: MAX_CYCLE - sum(quotas)]:
        quotas[index] += 1
    if 0 in quotas:
        raise DataError(f"weights {list(weights)}: the smallest share is below 1/{MAX_CYCLE}; raise it or leave it out")
    return quotas


def even_cycle(quotas: Sequence[int]) -> Int64[np.ndarray, " cycle"]:
    """The source at each position of a cycle, every prefix within one position of every source's share.

    The j-th turn of a source with share w may come at the positions ⌊(j−1)/w⌋ … ⌈j/w⌉ − 1. The earliest deadline first
    keeps all of them (Liu and Layland 1973; the windows are those of Baruah et al. 1996, "Proportionate progress").
    """
    cycle = sum(quotas)
    turns = [0] * len(quotas)
    release, deadline = [0] * len(quotas), [-(-cycle // quota) for quota in quotas]
    chosen = np.empty(cycle, np.int64)
    for position in range(cycle):
        source = min((d, i) for i, d in enumerate(deadline) if release[i] <= position)[1]
        chosen[position] = source
        turns[source] += 1
        release[source] = turns[source] * cycle // quotas[source]
        deadline[source] = -(-(turns[source] + 1) * cycle // quotas[source])
    return chosen


class Schedule:
    """Which source takes each position, and how many positions it took before: its own position."""

    def __init__(self, weights: Sequence[float], seed: int):
        quotas = quotas_of(weights)
        repeats = max(1, WINDOW // sum(quotas))  # a short cycle several times over: fewer windows to make
        self.quotas = np.array(quotas, np.int64) * repeats
        self.cycle, self.seed = int(self.quotas.sum()), seed
        self._sources = np.tile(even_cycle(quotas), repeats)
        self._turns = np.empty_like(self._sources)
        for source, rows in groups(self._sources):
            self._turns[rows] = np.arange(self.quotas[source])
        self._windows_a_cycle = -(-self.cycle // WINDOW)
        self._window = lru_cache(maxsize=8)(self._make_window)

    def _make_window(self, window: int) -> Places:
        """Source and own position in the cycle, for each position of a window.

        Neighbours change places by chance where both stay within one position of their share; so neither a rank nor a
        place in the batch always gets the same source.
        """
        first = window % self._windows_a_cycle * WINDOW
        sources, turns = self._sources[first : first + WINDOW].copy(), self._turns[first : first + WINDOW].copy()
        chance = np.random.Generator(np.random.PCG64([self.seed, window]))
        for number in range(SHUFFLE_PASSES):
            left = np.arange(number % 2, len(sources) - 1, 2)
            right, prefix = left + 1, first + left + 1
            late = turns[left] * self.cycle - self.quotas[sources[left]] * prefix
            early = (turns[right] + 1) * self.cycle - self.quotas[sources[right]] * prefix
            swap = (np.abs(late) < self.cycle) & (np.abs(early) < self.cycle) & (sources[left] != sources[right])
            swap &= chance.random(len(left)) < 0.5
            left, right = left[swap], right[swap]
            for column in (sources, turns):
                column[left], column[right] = column[right], column[left]
        return sources, turns

    def locate(self, positions: Positions) -> Places:
        """Source and the source's own position, for each position."""
        wanted = as_positions(positions)
        sources, own = np.empty_like(wanted), np.empty_like(wanted)
        cycles, offsets = np.divmod(wanted, self.cycle)
        for window, rows in groups(cycles * self._windows_a_cycle + offsets // WINDOW):
            of_window, turns = self._window(window)
            at = offsets[rows] % WINDOW
            sources[rows] = of_window[at]
            own[rows] = self.quotas[of_window[at]] * cycles[rows] + turns[at]
        return sources, own

    def taken(self, num_positions: int) -> Int64[np.ndarray, " sources"]:
        """How many of the positions before `num_positions` each source took."""
        cycles, rest = divmod(num_positions, self.cycle)
        whole = rest // WINDOW * WINDOW
        begun = self.locate(range(num_positions - rest + whole, num_positions))[0]
        of_rest = np.concatenate([self._sources[:whole], begun])
        return self.quotas * cycles + np.bincount(of_rest, minlength=len(self.quotas))


class Mixture:
    """Sources, each a set of shards with an order of its own, mixed by weight.

    Args:
        shard_sizes: samples of every shard.
        sources: the shards of each source.
        weights: one a source.
        seed: of the schedule and of every source's order.
        block_shards: shards of a source that are mixed with each other.
    """

    def __init__(
        self,
        shard_sizes: np.ndarray,
        sources: Sequence[np.ndarray],
        weights: Sequence[float],
        seed: int,
        block_shards: int,
    ):
        if len(weights) != len(sources):
            raise DataError(f"{len(weights)} weights for {len(sources)} sources; give one a source")
        self.sources, self.num_shards = sources, len(shard_sizes)
        self.schedule = Schedule(weights, seed)
        self.orders = [
            SampleOrder(shard_sizes[shards], _seed_of(seed, number), block_shards)
            for number, shards in enumerate(sources)
        ]
        self.epoch_size = sum(order.epoch_size for order in self.orders)

    def locate(self, positions: Positions) -> Places:
        """Shard and sample at each position."""
        sources, own = self.schedule.locate(positions)
        shards, samples = np.empty_like(own), np.empty_like(own)
        for source, rows in groups(sources):
            of_source, samples[rows] = self.orders[source].locate(own[rows])
            shards[rows] = self.sources[source][of_source]
        return shards, samples

    def shards_from(self, position: int) -> list[int]:
        """The shards that the sources are in at `position`, and those they need next."""
        taken = self.schedule.taken(position).tolist()
        found = [order.shards_from(own) for order, own in zip(self.orders, taken, strict=True)]
        turns = max(map(len, found))
        return [
            int(self.sources[source][shards[turn]])
            for turn in range(turns)
            for source, shards in enumerate(found)
            if turn < len(shards)
        ]

    def seen(self, num_positions: int) -> Int64[np.ndarray, " shards"]:
        """Samples of each shard at the positions before `num_positions`, repeats counted."""
        counts = np.zeros(self.num_shards, np.int64)
        for order, shards, taken in zip(
            self.orders, self.sources, self.schedule.taken(num_positions).tolist(), strict=True
        ):
            counts[shards] = order.seen(taken)
        return counts


def _seed_of(seed: int, source: int) -> int:
    """Two sources of the same shard sizes must not be shuffled alike."""
    return int(np.random.SeedSequence([seed, source, 1]).generate_state(1, np.uint64)[0])


def make_order(
    sizes: Sequence[np.ndarray], weights: Sequence[float] | None, seed: int, block_shards: int, copies: int = 0
) -> Order:
    """The order of data sets read as one: mixed by weight, or all of them once an epoch where there are no weights.

    Args:
        sizes: the shard sizes of each data set; shards are numbered through.
        weights: one a data set.
        seed: of the order.
        block_shards: shards that are mixed with each other.
        copies: how often all shards come again after the first time; copy c of shard s is number c · shards + s.

    Raises:
        DataError: there are no samples, or the weights do not fit.
    """
    ends = np.cumsum([len(of_dataset) for of_dataset in sizes])
    num_shards = int(ends[-1])
    repeated = np.tile(np.concatenate(sizes), 1 + copies)
    if weights is None:
        return SampleOrder(repeated, seed, block_shards)
    own = [np.arange(end - len(of_dataset), end) for end, of_dataset in zip(ends, sizes, strict=True)]
    sources = [np.concatenate([shards + copy * num_shards for copy in range(1 + copies)]) for shards in own]
    return Mixture(repeated, sources, weights, seed, block_shards)
