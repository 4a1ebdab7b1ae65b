"""What the loop asks of a task. A task owns its engines and losses and knows nothing of steps, ranks or files."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from hdtrain.distributed.seeds import Draws
from hdtrain.models.ema import Ema
from hdtrain.training.engine import Engine


class Source(Protocol):
    """Training data at any positions; a batch has `keys`."""

    def batch(self, positions: range) -> Any:
        """The samples at `positions`."""
        ...


class Task(Protocol):
    """One thing to train."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """What is trained, by name."""
        ...

    @property
    def ema(self) -> Ema | None:
        """The moving average of the first engine's weights."""
        ...

    def micro_step(self, batch: Any, draws: Draws, lr: float, images_seen: int) -> dict[str, Tensor]:
        """Losses, backward and (at the end of an accumulation) optimizer steps; returns scalars to log."""
        ...

    def visualise(self) -> dict[str, np.ndarray]:
        """Image grids (uint8 HWC) of fixed inputs and seeds, by TensorBoard tag."""
        ...
