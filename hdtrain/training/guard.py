"""Which steps must not be taken: losses and gradients that are not finite or far from those before them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hdtrain.config.engine import GuardConfig

MEMORY = 0.98
"""Of the running mean and deviation: some fifty steps."""
LEARNING_STEPS = 50
"""Before so many values were seen, only infinities count."""
DEVIATIONS = 6.0
KEYS_SHOWN = 8


@dataclass
class Running:
    """Running mean and variance of a positive figure's logarithm."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take in the next value; what is not positive has no logarithm and is left out."""
        if value <= 0 or not math.isfinite(value):
            return
        weight = max(1 - MEMORY, 1 / (self.count + 1))
        difference = math.log(value) - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)
        self.count += 1

    def limit(self, factor: float | None) -> float:
        """The largest value that is no spike: `factor` times the mean, or six deviations if that is more."""
        if factor is None or self.count < LEARNING_STEPS:
            return math.inf
        return math.exp(self.mean + max(math.log(factor), DEVIATIONS * math.sqrt(self.variance)))


def where_refused(reports: list[tuple[int, dict[str, float], list[str]]]) -> str:
    """The ranks whose watched loss is not finite, else any loss, or else the one with the highest; with keys.

    Args:
        reports: rank, losses (the watched one first) and keys of its part of the batch, of every rank.
    """

    def watched(report: tuple[int, dict[str, float], list[str]]) -> float:
        return next(iter(report[1].values()))

    guilty = [report for report in reports if not math.isfinite(watched(report))]  # others may be means over ranks
    guilty = guilty or [report for report in reports if not all(map(math.isfinite, report[1].values()))]
    guilty = guilty or [max(reports, key=watched)]
    return "; ".join(
        f"rank {rank}: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}, keys of the batch: "
        f"{', '.join(keys[:KEYS_SHOWN])}{' …' if len(keys) > KEYS_SHOWN else ''}"
        for rank, losses, keys in guilty
    )


class Guard:
    """The running figures of one run; the same on every rank, since all see the reduced values."""

    def __init__(self, config: GuardConfig):
        self.config, self.skipped = config, 0
        self._running: dict[str, Running] = {}

    def _of(self, name: str) -> Running:
        return self._running.setdefault(name, Running())

    def loss_limit(self) -> float:
        """Losses above are spikes."""
        return self._of("loss").limit(self.config.loss_factor)

    def grad_norm_limit(self, engine: str) -> float:
        """Gradient norms above are explosions."""
        return self._of(f"grad_norm/{engine}").limit(self.config.grad_norm_factor)

    def saw(self, loss: float, grad_norms: dict[str, float]) -> None:
        """A step was taken."""
        self._of("loss").add(loss)
        for engine, norm in grad_norms.items():
            self._of(f"grad_norm/{engine}").add(norm)

    def may_skip(self) -> bool:
        """Count one more batch passed over, if the config allows it."""
        self.skipped += 1
        return self.skipped <= self.config.skip_batches

    def state(self) -> dict[str, Any]:
        """For the checkpoint's meta.json: floats survive JSON exactly."""
        return {"skipped": self.skipped, "running": {name: asdict(value) for name, value in self._running.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.skipped = state["skipped"]
        self._running = {name: Running(**value) for name, value in state["running"].items()}
