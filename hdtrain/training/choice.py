"""Which weights of a training are kept, and when it stops: by the loss on a validation set."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Choice:
    """The best validation so far. A function of the validation losses alone, which are the same on every rank.

    Its `state` belongs to every checkpoint, so that a run that goes on chooses what it would have chosen in one go.
    """

    keeps_best: bool = False
    """Whether the weights of the best validation are what is wanted."""
    every_images: int | None = None
    """How often the loss is measured; None: twenty times a run."""
    patience_images: int | None = None
    """Stop when the loss has not fallen for so many images; None: never."""
    best_loss: float | None = None
    best_step: int | None = None
    best_images: int = 0
    ended_step: int | None = None
    """The step after which patience was at its end."""

    @property
    def ended(self) -> bool:
        """Whether training has stopped early."""
        return self.ended_step is not None

    def saw(self, loss: float | None, step: int, images_seen: int) -> bool:
        """Note the loss after `step`; whether it is the lowest so far. What is no number is no improvement."""
        improved = loss is not None and math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if improved:
            self.best_loss, self.best_step, self.best_images = loss, step, images_seen
        elif self.patience_images is not None and images_seen - self.best_images >= self.patience_images:
            self.ended_step = step
        return improved

    def chosen_step(self, num_steps: int) -> int:
        """The step whose weights are wanted, of a training that may make `num_steps`."""
        last = self.steps_made(num_steps)
        return self.best_step if self.keeps_best and self.best_step is not None else last

    def steps_made(self, num_steps: int) -> int:
        """How many steps the training made, which is over."""
        return num_steps if self.ended_step is None else self.ended_step

    def state(self) -> dict[str, Any]:
        """What `load` needs."""
        return {name: getattr(self, name) for name in ("best_loss", "best_step", "best_images", "ended_step")}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        for name, value in state.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        lowest = "was never a number" if self.best_loss is None else f"is that of step {self.best_step}"
        return (
            f"stopped early after step {self.ended_step}: the lowest validation loss {lowest}, "
            f"{self.patience_images:,} images ago or more"
        )
