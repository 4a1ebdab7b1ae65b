"""What the loop asks of a task. A task owns its engines and losses and knows nothing of steps, ranks or files."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from hdtrain.distributed.seeds import Draws
from hdtrain.training.choice import Choice
from hdtrain.training.engine import Engine


class Source(Protocol):
    """Training data at any positions; a batch has `keys`."""

    def batch(self, positions: range) -> Any:
        """The samples at `positions`."""
        ...


class Task:
    """One thing to train.

    Everything but `micro_step` may be a collective: the loop calls it on every rank, at the same steps.
    """

    engines: Mapping[str, Engine]
    """What is trained, by name."""
    choice: Choice | None = None
    """Which weights are kept, and when to stop, by the validation loss; None: the last ones, at the end."""

    def micro_step(self, batch: Any, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """Losses and their backward, for one pass; the loop steps the engines.

        Returns:
            Scalars to log, the same names on every rank; the first is the loss that is watched for spikes.
        """
        raise NotImplementedError

    def visualise(self) -> dict[str, np.ndarray]:
        """Image grids (uint8 HWC) of fixed inputs and seeds, by TensorBoard tag; the main rank's are written."""
        return {}

    def validate(self) -> dict[str, float]:
        """Figures on fixed data and noise, by metric name; the first `validation/…` is what `keep_best` goes by."""
        return {}

    def pop_statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts, one a bin, gathered on this rank since the last call; logged as means `NAME/0` …"""
        return {}
