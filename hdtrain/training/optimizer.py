"""AdamW as the engine needs it: it may refuse an update, and it keeps moving averages beside its moments."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from hdtrain.config.engine import OptimConfig
from hdtrain.models.ema import Profile

MOMENTS = ("exp_avg", "exp_avg_sq")


class AveragingAdamW(torch.optim.AdamW):
    """Fused AdamW on fp32 master weights.

    DeepSpeed calls `step` at every ZeRO stage on whatever part of the masters this rank owns, after it has reduced,
    measured and clipped the gradients. So this is where a bad update can still be refused, and where averages of the
    masters cost no communication: they are state like the moments, partitioned with them.

    Args:
        parameters: what is trained.
        config: hyperparameters.
        averages: moving averages to keep, by name.
        permits: asked before every update; False leaves weights, moments and averages as they are.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        config: OptimConfig,
        averages: Mapping[str, Profile],
        permits: Callable[[], bool],
    ):
        self._averages, self._permits, self.updates = averages, permits, 0
        super().__init__(
            parameters,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def state_names(self) -> list[str]:
        """What is kept for every weight, each a tensor of its shape."""
        return [*MOMENTS, *self._averages]

    @torch.no_grad()
    def make_state(self, masters: Iterable[Tensor], updates: int) -> None:
        """State as after `updates` updates, with moments of zero and averages of the present weights."""
        self.updates = updates
        for p in masters:
            self.state[p] = {"step": torch.tensor(float(updates), device=p.device)}
            self.state[p] |= {name: torch.zeros_like(p) for name in MOMENTS}
            self.state[p] |= {name: p.detach().clone() for name in self._averages}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the groups' weights and their averages, if that is permitted."""
        if not self._permits():
            return
        super().step()
        masters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for name, profile in self._averages.items():
            averages = [self.state[p][name] for p in masters]
            torch._foreach_lerp_(averages, masters, 1 - profile.beta(self.updates + 1))
