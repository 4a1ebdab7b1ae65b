"""Ranks of a painting agree, before every sum, whether to go on."""

import time
from dataclasses import dataclass, field

import torch

from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.stop import STOP, Deadline, stop_reason


@dataclass
class Stopping:
    """Knows why to leave, on every rank alike."""

    deadline: Deadline = field(default_factory=Deadline.from_environment)
    save_sec: float = 0.0
    """The longest save so far."""
    _last: float = field(default_factory=time.monotonic)

    def reason(self) -> str:
        """Empty: go on; else what follows the word "stopped". All ranks ask together."""
        now = time.monotonic()
        reached = self.deadline.reached(self.save_sec, now - self._last)
        self._last = now
        votes = torch.tensor(STOP.votes(reached), dtype=torch.float64, device=device())
        return stop_reason(all_reduce_sum(votes).tolist(), self.deadline)
