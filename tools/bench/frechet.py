"""B5: the tail of an FID, from two sets' sums to one number."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.linalg import sqrtm

from bench.compare import Contestant, Outcome, OutputsDifferError, compare
from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments

OURS, SQRTM, EIGVALS = "ours", "scipy.linalg.sqrtm", "torch.linalg.eigvals"
GOAL, TOLERANCE = 10.0, 1e-9
SHARDS = 64
ORDERS = 3
Trace = Callable[[np.ndarray, np.ndarray], float]


def features(dim: int, seed: int) -> np.ndarray:
    """float32 (3·dim, dim): correlated, not negative, with variances that fall as pooled features' do; of full rank."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) * (1 + np.arange(dim)) ** -0.75
    x = rng.standard_normal((3 * dim, dim)) @ mixing.T / np.sqrt(dim) + 0.1 * rng.standard_normal((3 * dim, dim))
    return np.maximum(x + 0.2, 0).astype(np.float32)


def by(trace_of_root: Trace, a: Moments, b: Moments) -> float:
    """The formula as it stands, with a peer's way to tr (Σ₁Σ₂)^½."""
    difference, first, second = a.mean - b.mean, a.covariance, b.covariance
    trace = trace_of_root(first, second)
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * trace)


def root_by_sqrtm(first: np.ndarray, second: np.ndarray) -> float:
    """As pytorch-fid and clean-fid."""
    return float(np.trace(sqrtm(first @ second)).real)


def root_by_eigenvalues(first: np.ndarray, second: np.ndarray) -> float:
    """As torchmetrics."""
    eigenvalues = torch.linalg.eigvals(torch.from_numpy(first) @ torch.from_numpy(second))
    return float(eigenvalues.sqrt().real.sum())


def check_orders(x: np.ndarray, reference: Moments, seed: int) -> str:
    """Shards whose sums come in any order, merged in the manifest's: the same bits each time.

    Raises:
        OutputsDifferError: one order gave another distance, or all of them one far from that of the whole set.
    """
    shards, dim = np.array_split(x, SHARDS), x.shape[1]
    found = set()
    for number in range(ORDERS):
        order = np.random.default_rng(seed + number).permutation(SHARDS)
        sums = {int(shard): Moments.of(shards[shard]) for shard in order}
        found.add(frechet_distance(Moments.merged((sums[shard] for shard in range(SHARDS)), dim), reference))
    if len(found) != 1:
        raise OutputsDifferError(f"{ORDERS} orders of {SHARDS} shards gave {sorted(found)}, expected one number")
    whole = frechet_distance(Moments.of(x), reference)
    difference = abs(found.pop() / whole - 1)
    if difference > TOLERANCE:
        raise OutputsDifferError(f"{SHARDS} shards and the whole set differ by {difference:.1e}, allowed {TOLERANCE}")
    return (
        f"{ORDERS} orders of {SHARDS} shards: bit-identical; against the whole set at once: {difference:.1e} relative"
    )


def run(dim: int, seed: int, rounds: int) -> Outcome:
    """Time the three, and hold them to one value."""
    x = features(dim, seed)
    sets = Moments.of(x), Moments.of(features(dim, seed + 1))
    values: dict[str, list[float]] = {}

    ways: dict[str, Callable[[], float]] = {
        OURS: partial(frechet_distance, *sets),
        EIGVALS: partial(by, root_by_eigenvalues, *sets),
        SQRTM: partial(by, root_by_sqrtm, *sets),
    }
    contestants = [Contestant(name, way, check=values.setdefault(name, []).append) for name, way in ways.items()]
    outcome = compare(f"Fréchet distance at {dim:,} dimensions, full rank", "distances/s", 1, contestants, rounds)
    outcome.expect(OURS, SQRTM, GOAL)
    for name in (OURS, EIGVALS):
        difference = max(abs(value / values[SQRTM][0] - 1) for value in values[name])
        if name == OURS and difference > TOLERANCE:
            raise OutputsDifferError(
                f"{name} gives {values[name]}, {SQRTM} {values[SQRTM]}; allowed: {TOLERANCE} relative"
            )
        outcome.notes.append(f"{name}: {difference:.1e} relative from {SQRTM}")
    outcome.notes.append(check_orders(x, sets[1], seed))
    return outcome
