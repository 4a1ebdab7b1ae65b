"""Moving averages of weights: how much of the old average stays after an update, and averages of any length afterwards.

Where the averages live and how they are updated is the optimizer's business (`hdtrain.training.optimizer`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

POST_HOC_STDS = (0.05, 0.10)
"""Relative widths of the two power-function averages that are kept during training (Karras et al. 2024, EDM2)."""


class Profile(Protocol):
    """average ← β·average + (1−β)·weights."""

    def beta(self, update: int) -> float:
        """β of an update, counted from 1."""
        ...


@dataclass(frozen=True)
class Exponential:
    """β = min(decay, (1+n)/(10+n)) after n updates: the usual EMA with its warm-up."""

    decay: float

    def beta(self, update: int) -> float:
        """β of an update, counted from 1."""
        return min(self.decay, update / (9 + update))


@dataclass(frozen=True)
class PowerFunction:
    """β = (1 − 1/t)^(γ+1): weights of time τ count as τ^γ (EDM2, eq. 127). `std` is the profile's relative width."""

    std: float

    @property
    def gamma(self) -> float:
        """γ for a relative standard deviation of `std`: the root of std² (γ+2)² (γ+3) = γ+1."""
        a = self.std**-2
        return float(np.roots([1.0, 7.0, 16.0 - a, 12.0 - a]).real.max())

    def beta(self, update: int) -> float:
        """β of an update, counted from 1."""
        return float((1 - 1 / update) ** (self.gamma + 1))


def average_names(post_hoc: bool) -> list[str]:
    """What the averages are called where they are stored."""
    return ["ema", *(post_hoc_name(std) for std in POST_HOC_STDS if post_hoc)]


def post_hoc_name(std: float) -> str:
    """The stored name of a power-function average."""
    return f"ema_std_{std:.2f}"


def profiles(decay: float, post_hoc: bool) -> dict[str, Profile]:
    """The averages that a run keeps, by stored name."""
    averages: dict[str, Profile] = {"ema": Exponential(decay)}
    if post_hoc:
        averages |= {post_hoc_name(std): PowerFunction(std) for std in POST_HOC_STDS}
    return averages


def combine(snapshots: Sequence[tuple[int, float]], update: int, std: float) -> np.ndarray:
    """Factors with which stored averages add up to the average of relative width `std` after `update` updates.

    The least-squares fit of the wanted profile by those of the snapshots (EDM2, section 3.2 and appendix C), with
    factors that add up to 1: what never changed in training must stay as it is, however short the training was.

    Args:
        snapshots: (updates so far, relative width) of every stored average.
        update: the moment of the wanted average; not after the last snapshot.
        std: its relative width.

    Returns:
        fp64, one factor a snapshot.
    """
    times = np.array([time for time, _ in snapshots], np.float64)
    gammas = np.array([PowerFunction(width).gamma for _, width in snapshots])
    among = _inner_product(times[:, None], gammas[:, None], times[None, :], gammas[None, :])
    wanted = _inner_product(times, gammas, np.array(update), np.array(PowerFunction(std).gamma))
    ones = np.ones((len(times), 1))
    system = np.block([[among, ones], [ones.T, np.zeros((1, 1))]])
    factors: np.ndarray = np.linalg.solve(system, np.append(wanted, 1.0))[:-1]
    return factors


def _inner_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """∫ p_a p_b dτ of two profiles p(τ) = (γ+1) τ^γ / t^(γ+1) on [0, t], up to the earlier of their ends."""
    earlier, a_is_earlier = np.minimum(t_a, t_b), t_a < t_b
    later, gamma_of_later = np.maximum(t_a, t_b), np.where(a_is_earlier, gamma_b, gamma_a)
    shared = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    result: np.ndarray = shared / later * (earlier / later) ** gamma_of_later
    return result
