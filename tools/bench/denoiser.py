"""B7: the denoiser's forward and backward pass against plain diffusers, and its parameters and FLOPs.

*diffusers* is `UNet2DModel` from arguments written out here, as a user of diffusers would, in eager mode and its own
memory format. Ours is `build_denoiser` of a preset as the engine runs it with the settings of a variant. All have the
same weights and see the same batch; what they predict and the gradient of their first weights are compared.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from bench.compare import Contestant, Outcome, OutputsDifferError, Spread, compare
from hdtrain.models.checkpointing import checkpoint_activations
from hdtrain.models.denoiser import build_denoiser
from hdtrain.training.costs import forward_flops

PLAIN = {
    "ldm4": {
        "block_out_channels": (224, 448, 672, 896),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 32,
    },
    "small": {
        "block_out_channels": (64, 96, 128),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 32,
    },
    "tiny": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 32,
        "norm_num_groups": 16,
    },
}
"""Arguments of `UNet2DModel`, without a word of ours."""
PUBLISHED = ("274,056,163", "202.4", "607.2")
"""CompVis's LDM-4: parameters, forward GF and training GF of an image with a 64×64×3 latent."""
VARIANTS = ("eager", "channels_last", "compile", "checkpointing")
"""How ours is run; `compile` is in channels_last too."""
TOLERANCE = {"fp32": 2e-5, "bf16": 4e-2}
"""Largest difference in the norm of the reference's."""


@dataclass(frozen=True)
class Work:
    """One batch through one preset."""

    preset: str
    size: int
    batch: int
    precision: str
    device: torch.device
    passes: int = 3
    """A turn."""
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def count(preset: str, size: int) -> tuple[str, str, str]:
    """Parameters, forward GF and training GF of an image, as printed."""
    with torch.device("meta"):
        unet = build_denoiser(preset, 3, size)
        flops = forward_flops(unet, torch.empty(1, 3, size, size), torch.zeros(1, dtype=torch.int64))
    return f"{sum(p.numel() for p in unet.parameters()):,}", f"{flops / 1e9:.1f}", f"{3 * flops / 1e9:.1f}"


def check_published() -> None:
    """Compare `ldm4` with the published numbers.

    Raises:
        OutputsDifferError: they differ.
    """
    found = count("ldm4", 64)
    if found != PUBLISHED:
        raise OutputsDifferError(f"ldm4 has (parameters, forward GF, training GF) {found}, published are {PUBLISHED}")


def plain(work: Work) -> nn.Module:
    """diffusers as it comes."""
    torch.manual_seed(work.seed)
    return _placed(UNet2DModel(sample_size=work.size, **PLAIN[work.preset]), work)


def _placed(unet: nn.Module, work: Work) -> nn.Module:
    return (unet.bfloat16() if work.precision == "bf16" else unet).to(work.device)


def ours(work: Work, variant: str, weights: dict[str, Tensor]) -> nn.Module:
    """As the engine sets it up."""
    unet = _placed(build_denoiser(work.preset, 3, work.size), work)
    unet.load_state_dict(weights)
    if variant in ("channels_last", "compile"):
        unet.to(memory_format=torch.channels_last)
    if variant == "checkpointing":
        checkpoint_activations(unet)
    if variant == "compile":
        unet.compile()
    return unet


def run(work: Work, variants: Sequence[str], rounds: int) -> Outcome:
    """Images a second, forward and backward."""
    reference = plain(work)
    generator = torch.Generator().manual_seed(work.seed)
    z = torch.randn(work.batch, 3, work.size, work.size, generator=generator).to(work.device, work.dtype)
    t = torch.randint(0, 1000, (work.batch,), generator=generator).to(work.device)
    expected = _pass(reference, z, t)
    contestants = [Contestant("diffusers", _turn(work, reference, z, t))]
    for variant in variants:
        module = ours(work, variant, reference.state_dict())
        x = z.contiguous(memory_format=torch.channels_last) if variant in ("channels_last", "compile") else z
        name = f"ours, {variant}"
        contestants.append(
            Contestant(name, _turn(work, module, x, t), check=_same(name, expected, TOLERANCE[work.precision]))
        )
    title = f"{work.preset} at {work.size}×{work.size}, batch {work.batch}, {work.precision}, {_name(work.device)}"
    outcome = compare(title, "images/s", work.batch * work.passes, contestants, rounds)
    for variant in variants:
        if variant != "checkpointing":  # it does a third more work
            outcome.expect(f"ours, {variant}", "diffusers", 1.0)
    outcome.notes += _shares(work, outcome)
    return outcome


def _turn(work: Work, module: nn.Module, z: Tensor, t: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: [_pass(module, z, t) for _ in range(work.passes)][-1]


def _pass(module: nn.Module, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction, and the loss's gradient at the first convolution's weights."""
    module.zero_grad(set_to_none=True)
    predicted = module(z, t).sample
    predicted.float().square().mean().backward()
    if z.is_cuda:
        torch.cuda.synchronize()
    gradient = module.conv_in.weight.grad
    assert isinstance(gradient, Tensor)
    return predicted.detach(), gradient


def _same(name: str, expected: tuple[Tensor, Tensor], tolerance: float) -> Callable[[tuple[Tensor, Tensor]], None]:
    def check(found: tuple[Tensor, Tensor]) -> None:
        for what, ours, theirs in zip(("prediction", "gradient"), found, expected, strict=True):
            difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
            if not difference <= tolerance:
                raise OutputsDifferError(
                    f"{name}: its {what} is {difference:.1e} from diffusers', allowed {tolerance:.0e}"
                )

    return check


def _shares(work: Work, outcome: Outcome) -> list[str]:
    """MFU of every contestant, against a matrix product of the same run."""
    peak = _product(work)
    with torch.device("meta"):
        inputs = torch.empty(1, 3, work.size, work.size), torch.zeros(1, dtype=torch.int64)
        flops = 3 * forward_flops(build_denoiser(work.preset, 3, work.size), *inputs)
    shares = [f"{name} {100 * Spread.of(rates).median * flops / peak:.0f} %" for name, rates in outcome.rates.items()]
    product = f"a matrix product's {peak / 1e12:,.3g} TFLOP/s"
    return [f"training {flops / 1e9:,.1f} GF an image; share of {product}: {', '.join(shares)}"]


def _product(work: Work, seconds: float = 0.5) -> float:
    """FLOP/s of the best of several products, 8192³ on a GPU and 1024³ on a CPU."""
    side = 8192 if work.device.type == "cuda" else 1024
    a = torch.randn(side, side, device=work.device, dtype=work.dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        a @ a
        if work.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
