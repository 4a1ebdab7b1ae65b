"""What the ranks run in `test_collectives.py`: plain functions with the assertions in them."""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import all_reduce_max, all_reduce_mean, all_reduce_sum, barrier, process_group
from hdtrain.distributed.world import World
from hdtrain.training.autoencoder import adaptive_weight
from hdtrain.training.engine import Engine


def collectives() -> None:
    """Sum, maximum and mean over ranks, and a barrier."""
    world = World.from_environment()
    with process_group():
        value = torch.tensor([1.0, float(world.rank)])
        total = float(sum(range(world.size)))
        assert all_reduce_sum(value.clone()).tolist() == [world.size, total]
        assert all_reduce_max(value.clone()).tolist() == [1, world.size - 1]
        assert all_reduce_mean(value.clone()).tolist() == [1, total / world.size]
        with process_group():  # inside another one: nothing happens
            barrier()
        assert dist.is_initialized()
    assert not dist.is_initialized()


def one_adaptive_weight() -> None:
    """The adaptive weight of a batch that is cut over the ranks is that of the whole batch."""
    world = World.from_environment()
    source = torch.Generator().manual_seed(0)
    features, weight = torch.randn(4, 5, 8, 8, generator=source), torch.randn(3, 5, 3, 3, generator=source)
    gradients = [torch.randn(4, 3, 8, 8, generator=source) for _ in range(2)]
    whole = adaptive_weight((gradients[0], gradients[1]), features, weight.shape)  # before there is a group
    with process_group():
        mine = slice(4 // world.size * world.rank, 4 // world.size * (world.rank + 1))
        # The mean over a part of the images has gradients larger by the number of parts.
        parts = [gradient[mine] * world.size for gradient in gradients]
        torch.testing.assert_close(adaptive_weight((parts[0], parts[1]), features[mine], weight.shape), whole)


def three_more_steps(folder: str, zero_stage: int) -> None:
    """Train a small network for three steps, from the state after three steps if that is there; save the state."""
    world, before = World.from_environment(), Path(folder) / "after-3"
    with process_group():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
        plan = BatchPlan(8, 8 // world.size, 1, world.size)
        engine = Engine(
            "net", net, OptimConfig(lr=0.01, clip_grad_norm=0.3), plan, EngineConfig(zero_stage=zero_stage), EmaConfig()
        )
        if before.exists():
            engine.load(before, 3)
        barrier()
        for step in range(engine.steps, engine.steps + 3):
            source = torch.Generator().manual_seed(step)
            x, y = torch.randn(8, 4, generator=source), torch.randn(8, 3, generator=source)
            mine = list(plan.positions(0, 0, world.rank))
            engine.backward((engine(x[mine]) - y[mine]).square().mean())
            assert engine.step(0.01)
        after = Path(folder) / f"after-{engine.steps}"
        after.mkdir(parents=True, exist_ok=True)
        for stem, tensors in engine.state(world.is_main).items():
            save_file(tensors, after / f"{stem}.safetensors")
        barrier()
