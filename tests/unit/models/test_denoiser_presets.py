"""Denoisers by preset: their sizes, their form, and folders that plain diffusers loads."""

import typing
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D

from hdtrain.config.load import validate
from hdtrain.config.presets import DENOISERS, DenoiserPreset
from hdtrain.config.training import TrainLdmConfig
from hdtrain.errors import ConfigError
from hdtrain.models.denoiser import build_denoiser

PARAMETERS = {
    "ldm4": 274_056_163,
    "histodiff": 294_963_459,
    "ldm4-cond": 400_920_579,
    "small": 3_890_755,
    "tiny": 1_806_275,
    "small-cond": 5_598_499,
    "tiny-cond": 2_725_379,
}


def on_meta(preset: str, channels: int = 3, size: int = 64) -> torch.nn.Module:
    with torch.device("meta"):
        return build_denoiser(preset, channels, size)


@pytest.mark.parametrize("preset", DENOISERS)
def test_every_preset_has_its_number_of_parameters_and_predicts_what_has_the_shape_of_its_input(preset):
    unet = on_meta(preset)
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[preset]
    z, t = torch.empty(2, 3, 64, 64, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    width = DENOISERS[preset].context_dim
    condition = () if width is None else (torch.empty(2, 1, width, device="meta"),)
    assert unet(z, t, *condition).sample.shape == z.shape


def attention_sizes(unet: torch.nn.Module, size: int, *condition: torch.Tensor) -> set[tuple[int, int]]:
    """(downsample factor, heads) of every self-attention that is met on the way."""
    found = set()

    def saw(module: Attention, inputs: tuple[torch.Tensor, ...]) -> None:
        shape = inputs[0].shape  # (n, c, h, w), or (n, h·w, c) inside a transformer block
        side = shape[2] if len(shape) == 4 else round(shape[1] ** 0.5)
        found.add((size // side, module.heads))

    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(saw)
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    unet(torch.empty(1, 3, size, size, device="meta"), t, *condition)
    return found


def test_ldm4_attends_at_the_published_resolutions_with_heads_of_32_channels():
    assert attention_sizes(on_meta("ldm4"), 64) == {(2, 14), (4, 21), (8, 28)}


def test_histodiff_attends_at_the_published_resolutions_and_resamples_by_residual_blocks():
    unet = on_meta("histodiff")
    # The middle block, at a sixteenth, always attends.
    assert attention_sizes(unet, 64) == {(1, 4), (2, 8), (4, 8), (8, 16), (16, 16)}
    assert not any(isinstance(module, Downsample2D) and module.use_conv for module in unet.modules())
    resampling = [m for m in unet.modules() if isinstance(m, ResnetBlock2D) and (m.up or m.down)]
    assert len(resampling) == 8
    blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    assert {m.time_embedding_norm for m in blocks} == {"scale_shift"}
    assert all(m.group_norm is not None for m in unet.modules() if isinstance(m, Attention))


def test_the_conditional_denoiser_looks_at_its_tokens_at_the_published_resolutions():
    tokens = torch.empty(1, 1, 512, device="meta")
    assert attention_sizes(on_meta("ldm4-cond"), 64, tokens) == {(2, 1), (4, 1), (8, 1)}


@pytest.mark.parametrize(
    ("preset", "size", "multiple"), [("tiny", 10, 4), ("ldm4", 60, 8), ("histodiff", 40, 16), ("ldm4-cond", 36, 8)]
)
def test_a_size_that_the_levels_cannot_halve_is_refused(preset, size, multiple):
    with pytest.raises(ConfigError, match=rf"'{preset}' halves .* must be a multiple of {multiple}, got {size}"):
        build_denoiser(preset, 3, size)


def test_embeddings_need_a_preset_that_can_look_at_them():
    assert set(typing.get_args(DenoiserPreset)) == set(DENOISERS)
    config = {"latents": "a", "vae": "b", "duration": {"images": 1}, "embeddings": ["c"]}
    validate(TrainLdmConfig, {**config, "preset": "ldm4-cond"}, "x")
    with pytest.raises(ConfigError) as caught:
        validate(TrainLdmConfig, {**config, "preset": "histodiff"}, "x")
    (problem,) = caught.value.problems
    assert "'histodiff' cannot look at embeddings; choose ldm4-cond, small-cond, tiny-cond" in problem
    with pytest.raises(ConfigError, match="'tiny' cannot look at embeddings"):
        build_denoiser("tiny", 3, 16, embedding_dim=6)


@pytest.mark.parametrize(("shape_of", "kind"), [("histodiff", UNet2DModel), ("ldm4-cond", UNet2DConditionModel)])
def test_plain_diffusers_loads_every_form_and_gives_the_same_output(shape_of, kind, tmp_path, monkeypatch):
    """In the published form with few channels: what matters is that the folder says everything."""
    published = DENOISERS[shape_of]
    narrow = replace(
        published,
        block_channels=tuple(channels // 12 for channels in published.block_channels),
        head_channels=published.head_channels and published.head_channels // 12,
        norm_groups=4,
    )
    monkeypatch.setitem(DENOISERS, "narrow", narrow)
    torch.manual_seed(0)
    unet = build_denoiser("narrow", 3, 16).eval()
    assert isinstance(unet, kind)
    unet.save_pretrained(tmp_path)
    z, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    condition = (torch.randn(2, 1, 512),) if published.context_dim else ()
    with torch.no_grad():
        loaded, ours = (model(z, t, *condition).sample for model in (kind.from_pretrained(tmp_path), unet))
    torch.testing.assert_close(loaded, ours, rtol=1e-5, atol=1e-6)
