"""How fast a training runs: images/s, step times, waiting for data, MFU, memory."""

import resource
import time
from typing import Any

import numpy as np
import torch

from hdtrain.data.prefetch import Prefetcher


class Meter:
    """Figures of the steps since the last reading; what lies between `pause` and `go_on` does not count."""

    def __init__(self, batches: Prefetcher[Any], global_batch_size: int):
        self._batches, self._global_batch_size = batches, global_batch_size
        self._times: list[float] = []
        self._restart()

    def _restart(self) -> None:
        self._wait_before = self._batches.wait_sec
        self._times.clear()
        self.go_on()

    def go_on(self) -> None:
        """The next step begins now."""
        self._last = time.monotonic()

    def step(self) -> None:
        """A step has ended, and the next one begins."""
        now = time.monotonic()
        self._times.append(now - self._last)
        self._last = now

    @property
    def step_sec(self) -> float:
        """The last step's time."""
        return self._times[-1] if self._times else 0.0

    def read(self, flops_per_image: float, peak_flops: float) -> dict[str, float]:
        """By metric name.

        Args:
            flops_per_image: of training on one image.
            peak_flops: of all ranks' devices together, a second.
        """
        seconds = max(sum(self._times), 1e-9)
        rate = len(self._times) * self._global_batch_size / seconds
        values = {
            "images_per_sec": rate,
            "data_wait": min(1.0, (self._batches.wait_sec - self._wait_before) / seconds),
            "mfu": rate * flops_per_image / peak_flops,
            "memory_gib": memory_gib(),
        }
        if self._times:
            for name, percentile in (("p50", 50), ("p95", 95), ("max", 100)):
                values[f"step_sec/{name}"] = float(np.percentile(self._times, percentile))
        self._restart()
        return values


def memory_gib() -> float:
    """The most that this rank has held: of the GPU's memory where there is one, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
