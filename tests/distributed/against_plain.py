"""What the ranks run in `test_against_plain_torch.py`: the engine beside AdamW and clip_grad_norm_ of plain torch."""

from collections.abc import Sequence

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from states import relative_difference
from test_autoencoder_step import compare_with_plain_autograd
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import process_group
from hdtrain.distributed.world import World
from hdtrain.models.denoiser import TensorDenoiser
from hdtrain.models.ema import profiles
from hdtrain.training.engine import Engine

GLOBAL_BATCH, STEPS = 24, 20
EMA = EmaConfig(decay=0.9)
OPTIM = OptimConfig(lr=3e-4, weight_decay=0.1, clip_grad_norm=0.6)
State = dict[str, dict[str, Tensor]]


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8}
    return TensorDenoiser(UNet2DModel(sample_size=8, **blocks, **sizes))


def lr_of(step: int) -> float:
    return OPTIM.lr / (1 + 0.1 * step)


def noisy_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t and ε of a whole global batch."""
    source = torch.Generator().manual_seed(step)
    shape = (GLOBAL_BATCH, 3, 8, 8)
    z, noise = torch.randn(shape, generator=source), torch.randn(shape, generator=source)
    return z, torch.randint(1000, shape[:1], generator=source), noise


def plain_torch(pieces: int) -> tuple[State, list[float]]:
    """Without hdtrain and DeepSpeed, in one process, gradients added up over `pieces` parts of the batch.

    Kernels round differently for other batch sizes, which is no property of the engine.

    Returns:
        The state by kind, and every step's gradient norm before clipping.
    """
    net = denoiser()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=OPTIM.weight_decay, fused=True)
    parameters = dict(net.named_parameters())
    averages = {kind: {n: p.detach().clone() for n, p in parameters.items()} for kind in profiles(EMA.decay, True)}
    norms = []
    for step in range(STEPS):
        for z, t, noise in zip(*(part.chunk(pieces) for part in noisy_batch(step)), strict=True):
            ((net(z, t) - noise).square().mean() / pieces).backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), OPTIM.clip_grad_norm)))
        optimizer.param_groups[0]["lr"] = lr_of(step)
        optimizer.step()
        optimizer.zero_grad()
        for kind, profile in profiles(EMA.decay, True).items():
            beta = profile.beta(step + 1)
            averages[kind] = {n: beta * averages[kind][n] + (1 - beta) * p.detach() for n, p in parameters.items()}
    moments = {kind: {n: optimizer.state[p][kind] for n, p in parameters.items()} for kind in ("exp_avg", "exp_avg_sq")}
    return {"weights": {n: p.detach() for n, p in parameters.items()}, **moments, **averages}, norms


def in_the_engine(zero_stage: int, plan: BatchPlan) -> tuple[State, list[float]]:
    world = World.from_environment()
    engine = Engine("net", denoiser(), OPTIM, plan, EngineConfig(zero_stage=zero_stage), EMA)
    norms = []
    for step in range(STEPS):
        z, t, noise = noisy_batch(step)
        for accumulation_step in range(plan.accumulation_steps):
            mine = list(plan.positions(0, accumulation_step, world.rank))
            engine.backward((engine(z[mine], t[mine]) - noise[mine]).square().mean())
        assert engine.step(lr_of(step))
        norms.append(engine.grad_norm)
    return {kind.removeprefix("net."): tensors for kind, tensors in engine.state(is_main=True).items()}, norms


def denoisers_are_the_same(cells: Sequence[tuple[int, int]]) -> None:
    """For every (ZeRO stage, accumulation steps)."""
    world = World.from_environment()
    references: dict[int, tuple[State, list[float]]] = {}
    with process_group():
        for stage, accumulation in cells:
            pieces = world.size * accumulation
            plan = BatchPlan(GLOBAL_BATCH, GLOBAL_BATCH // pieces, accumulation, world.size)
            got, measured = in_the_engine(stage, plan)
            if not world.is_main:
                continue
            if pieces not in references:
                references[pieces] = plain_torch(pieces)
            expected, norms = references[pieces]
            assert min(norms) < OPTIM.clip_grad_norm < max(norms), f"always or never clipped: {norms}"
            torch.testing.assert_close(torch.tensor(measured), torch.tensor(norms), rtol=1e-6, atol=0)
            differences = {kind: relative_difference(got[kind], expected[kind]) for kind in expected}
            print(f"stage {stage}, accumulation {accumulation}:", differences)
            assert max(differences.values()) < 1e-6, f"stage {stage}, accumulation {accumulation}: {differences}"


def autoencoders_are_the_same(cells: Sequence[tuple[int, int]], folder: str) -> None:
    """With the discriminator, for every (ZeRO stage, accumulation steps); 1e-7 a step."""
    with process_group():
        for stage, accumulation in cells:
            compare_with_plain_autograd(stage, accumulation, folder)
