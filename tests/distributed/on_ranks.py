"""What the ranks run in `test_collectives.py`: plain functions with the assertions in them."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

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
        plan = BatchPlan(12, 12 // world.size, 1, world.size)
        engine = Engine(
            "net", net, OptimConfig(lr=0.01, clip_grad_norm=0.3), plan, EngineConfig(zero_stage=zero_stage), EmaConfig()
        )
        if before.exists():
            engine.load(before, 3)
        barrier()
        for step in range(engine.steps, engine.steps + 3):
            source = torch.Generator().manual_seed(step)
            x, y = torch.randn(12, 4, generator=source), torch.randn(12, 3, generator=source)
            mine = list(plan.positions(0, 0, world.rank))
            engine.backward((engine(x[mine]) - y[mine]).square().mean())
            assert engine.step(0.01)
        after = Path(folder) / f"after-{engine.steps}"
        after.mkdir(parents=True, exist_ok=True)
        for stem, tensors in engine.state(world.is_main).items():
            save_file(tensors, after / f"{stem}.safetensors")
        barrier()


def refused_on_one_rank(zero_stage: int) -> None:
    """NaN comes out of one backward pass of the last rank; afterwards training goes on as if it had not been."""
    world = World.from_environment()
    with process_group():
        states = []
        for poisoned in (True, False):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
            plan, config = BatchPlan(8, 4 // world.size, 2, world.size), EngineConfig(zero_stage=zero_stage)
            engine = Engine("net", net, OptimConfig(lr=0.01, clip_grad_norm=0.3), plan, config, EmaConfig())
            for step in range(4):
                if step == 2 and not poisoned:
                    continue
                for number in range(2):
                    source = torch.Generator().manual_seed(100 * step + 10 * number + world.rank)
                    odd = (step, number, world.rank) == (2, 0, world.size - 1)
                    loss = engine(torch.randn(2, 4, generator=source)).square().mean()
                    engine.backward(loss * (math.nan if odd else 1.0))
                assert engine.step(0.01) is (step != 2)
                assert math.isfinite(engine.grad_norm or 0.0) is (step != 2)
            assert engine.steps == 3
            states.append(engine.state(is_main=True))
        for stem, tensors in states[0].items():
            for name, value in tensors.items():
                assert torch.equal(value, states[1][stem][name]), f"{stem} {name}"


def loaded_is_saved(folder: str, zero_stage: int, precision: str) -> None:
    """Load what is in `folder`, if there is something, and save it again; else save something trained."""
    world, path = World.from_environment(), Path(folder)
    with process_group():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
        plan, config = (
            BatchPlan(12, 12 // world.size, 1, world.size),
            EngineConfig(zero_stage=zero_stage, precision=precision),
        )
        engine = Engine("net", net, OptimConfig(lr=0.01), plan, config, EmaConfig())
        if path.exists():
            engine.load(path, 2)
            for stem, tensors in engine.state(is_main=True).items():
                saved = load_file(path / f"{stem}.safetensors")
                assert saved.keys() == tensors.keys()
                for name, value in tensors.items():
                    assert torch.equal(value, saved[name]), f"{stem} {name}"
            return
        for step in range(2):
            x = torch.randn(plan.micro_batch_size, 5, generator=torch.Generator().manual_seed(step))
            engine.backward(engine(x).float().square().mean())
            assert engine.step(0.01)
        state = engine.state(world.is_main)
        if world.is_main:
            path.mkdir()
            for stem, tensors in state.items():
                save_file(tensors, path / f"{stem}.safetensors")
        barrier()
