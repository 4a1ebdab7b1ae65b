"""Draws: the same numbers for an image, whatever the world size and the accumulation."""

import pytest
import torch

from hdtrain.config.batch import BatchPlan
from hdtrain.distributed.seeds import Draws, derive_seed

DRAWS = {
    "normal": lambda draws: draws.normal("noise", (2, 3)),
    "integers": lambda draws: draws.integers("timestep", 1000),
    "uniform": lambda draws: draws.uniform("crop", (2,)),
}


def gathered(kind: str, world_size: int, accumulation_steps: int, step: int = 5, seed: int = 1) -> torch.Tensor:
    """What all ranks draw in one step, in the order of the positions."""
    plan = BatchPlan(12, 12 // world_size // accumulation_steps, accumulation_steps, world_size)
    parts = [
        DRAWS[kind](Draws(seed, step, accumulation_step, rank, plan, torch.device("cpu")))
        for accumulation_step in range(accumulation_steps)
        for rank in range(world_size)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("kind", DRAWS)
def test_the_draws_of_a_step_do_not_depend_on_ranks_and_accumulation(kind):
    one = gathered(kind, 1, 1)
    for world_size, accumulation_steps in [(2, 1), (1, 2), (3, 2), (2, 3), (12, 1)]:
        assert torch.equal(gathered(kind, world_size, accumulation_steps), one)


@pytest.mark.parametrize("kind", DRAWS)
def test_steps_and_seeds_differ_and_so_do_the_images_of_a_batch(kind):
    one = gathered(kind, 1, 1)
    assert not torch.equal(one, gathered(kind, 1, 1, step=6))
    assert not torch.equal(one, gathered(kind, 1, 1, seed=2))
    assert len(one.unique(dim=0)) == 12


def test_seeds_of_neighbouring_positions_and_other_purposes_are_far_apart_and_lasting():
    seeds = {derive_seed(seed, purpose, i) for seed in range(3) for purpose in ("a", "b") for i in range(200)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written down: another value here means that old runs cannot be repeated.
    assert derive_seed(0, "sample", 0) == 59423683461736070
