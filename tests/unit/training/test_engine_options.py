"""How a step is computed does not change what is computed: checkpointing, memory format, compilation."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from pydantic import ValidationError
from torch import nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EngineConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.models.checkpointing import checkpoint_activations
from hdtrain.models.classifier import EncoderClassifier, TimmClassifier
from hdtrain.models.denoiser import TensorDenoiser, build_denoiser
from hdtrain.training.engine import Engine

OPTIM = OptimConfig(lr=1e-3, eps=1e-4)


def trained(make, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of three steps."""
    init_process_group()
    torch.manual_seed(0)
    engine, losses = Engine("net", make(), OPTIM, BatchPlan(4, 4, 1, 1), EngineConfig(**options)), []
    for step in range(3):
        source = torch.Generator().manual_seed(step)
        x, t = torch.randn(4, 3, 16, 16, generator=source), torch.randint(1000, (4,), generator=source)
        loss = (engine(x, t) - x).square().mean()
        engine.backward(loss)
        assert engine.step(1e-3)
        losses.append(float(loss.detach()))
    return losses, dict(engine.gathered())


def denoiser() -> nn.Module:
    return TensorDenoiser(build_denoiser("tiny", 3, 16))


class Convolutions(nn.Module):
    """Small enough to be compiled in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * (t / 1000).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"channels_last": True},
        {"activation_checkpointing": True, "channels_last": True, "zero_stage": 3},
    ],
)
def test_the_same_losses_and_weights(options):
    losses, weights = trained(denoiser, **options)
    expected_losses, expected = trained(denoiser)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_it_computes_the_same():
    losses, weights = trained(Convolutions, compile=True)
    expected_losses, expected = trained(Convolutions)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_compilation_and_stage_3_exclude_each_other():
    with pytest.raises(ValidationError, match="compile needs zero_stage 0, 1 or 2"):
        EngineConfig(compile=True, zero_stage=3)


def kept_bytes(model: nn.Module, *inputs: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(*inputs)
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["denoiser", "lae", "vit"])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(name):
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 700])
    model, inputs = {
        "denoiser": lambda: (denoiser(), (x, t)),
        "lae": lambda: (EncoderClassifier("lae-tiny", "latent", ["a", "b"], 3, 32), (x, t)),
        "vit": lambda: (TimmClassifier("test_vit", ["a", "b"], 32), (x,)),
    }[name]()
    before = kept_bytes(model, *inputs)
    model(*inputs).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert checkpoint_activations(model) > 0
    assert kept_bytes(model, *inputs) < 0.6 * before
    model(*inputs).square().sum().backward()
    for name, p in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-5, atol=1e-6)


def test_attention_is_torchs_fused_one():
    layers = [m for m in build_denoiser("tiny", 3, 16).modules() if isinstance(m, Attention)]
    assert layers
    assert all(isinstance(layer.processor, AttnProcessor2_0) for layer in layers)
