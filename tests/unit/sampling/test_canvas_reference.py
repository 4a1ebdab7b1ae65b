"""The canvas against the algorithm as a notebook would write it: loops, float64, no batches, no integers."""

import copy
import math

import pytest
import torch
from tiny_painting import tiny_grid, tiny_unet

from hdtrain.config.presets import AUTOENCODERS
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.canvas import canvas_steps
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.world import World
from hdtrain.models.autoencoder import LatentCodec, build_autoencoder
from hdtrain.models.denoiser import EmbeddingDenoiser
from hdtrain.sampling.painting.decode import CanvasDecoder
from hdtrain.sampling.painting.denoise import CanvasSampler
from hdtrain.sampling.painting.models import PaintModels, with_guidance
from hdtrain.sampling.painting.plan import PaintPlan

ROWS, COLUMNS, W, STRIDE, STEPS, GUIDANCE = 2, 3, 8, 2, 4, 4.0


def reference_slerp(tau, a, b):
    cosine = torch.dot(a / a.norm(), b / b.norm()).item()
    if abs(cosine) > 0.9995:
        return (1 - tau) * a + tau * b
    theta = math.acos(cosine)
    return (math.sin((1 - tau) * theta) * a + math.sin(tau * theta) * b) / math.sin(theta)


def reference_condition(grid, i, j):
    u, v = i / W, j / W
    r0, c0 = int(u), int(v)
    r1, c1 = min(r0 + 1, ROWS - 1), min(c0 + 1, COLUMNS - 1)
    upper = reference_slerp(v - c0, grid[r0][c0], grid[r0][c1])
    lower = reference_slerp(v - c0, grid[r1][c0], grid[r1][c1])
    return reference_slerp(u - r0, upper, lower)


def reference_canvas(unet, grid, noises, betas, noise_level, prediction="epsilon"):
    """Method, section 9, points 1 to 3."""
    alphas = torch.cumprod(1 - betas, 0)
    leap = len(betas) // STEPS
    x = noises[0].clone()
    for n in range(STEPS):
        t = leap * (STEPS - 1 - n) + 1
        bar, bar_after = alphas[t].item(), alphas[max(t - leap, 0)].item()
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(0, W * ROWS - W + 1, STRIDE):
            for j in range(0, W * COLUMNS - W + 1, STRIDE):
                window = x[:, i : i + W, j : j + W]
                each = [reference_condition(grid[:, :, token], i, j) for token in range(grid.shape[2])]
                e = torch.stack([one / one.norm() for one in each])
                tokens = torch.stack([torch.zeros_like(e), e])
                nothing, something = unet(torch.stack([window, window]), t, tokens).sample
                f = nothing + GUIDANCE * (something - nothing)
                if prediction == "epsilon":
                    x0 = (window - math.sqrt(1 - bar) * f) / math.sqrt(bar)
                elif prediction == "v_prediction":
                    x0 = math.sqrt(bar) * window - math.sqrt(1 - bar) * f
                else:
                    x0 = f
                total[:, i : i + W, j : j + W] += x0
                count[:, i : i + W, j : j + W] += 1
        x0 = total / count
        epsilon = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        if noise_level == "released_code":
            variance = betas[t].item() * (1 - bar_after) / (1 - bar)
        else:
            variance = noise_level**2 * (1 - bar_after) / (1 - bar) * (1 - bar / bar_after)
        x = math.sqrt(bar_after) * x0 + math.sqrt(1 - bar_after - variance) * epsilon
        x = x + math.sqrt(variance) * noises[n + 1]
    return x


def reference_pixels(decode, x, factor):
    """Point 4."""
    size = W * factor
    d = torch.linspace(-1, 1, size, dtype=torch.float64)
    weight = torch.exp(-(d[:, None] ** 2 + d[None, :] ** 2) / 0.8**2)
    total = torch.zeros(3, ROWS * size, COLUMNS * size, dtype=torch.float64)
    weights = torch.zeros_like(total[0])
    for i in range(0, W * ROWS - W + 1, STRIDE):
        for j in range(0, W * COLUMNS - W + 1, STRIDE):
            top, left = i * factor, j * factor
            pixels = decode(x[None, :, i : i + W, j : j + W])[0]
            total[:, top : top + size, left : left + size] += weight * pixels
            weights[top : top + size, left : left + size] += weight
    return total / weights


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    torch.manual_seed(3)
    vae = build_autoencoder("kl-f4-tiny", 32).eval().requires_grad_(False)
    assert AUTOENCODERS["kl-f4-tiny"].downsample_factor == 4
    return LatentCodec(vae, 0.7)


def sampler_for(unet, codec, noise_level, prediction="epsilon", batch_size=5, tokens=1):
    schedule = NoiseSchedule(NoiseScheduleConfig())
    models = PaintModels(
        denoise=with_guidance(EmbeddingDenoiser(unet), GUIDANCE, None),
        codec=codec,
        steps=canvas_steps(schedule, STEPS, noise_level),
        prediction=prediction,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    plan = PaintPlan(ROWS, COLUMNS, 3, W, 4, STRIDE, batch_size)
    embeddings = torch.from_numpy(tiny_grid(ROWS, COLUMNS, tokens=tokens).embeddings)
    return CanvasSampler(plan, models, embeddings, "uniform", 7, None, World())


def solved(sampler):
    z = sampler.start()
    for number in range(STEPS):
        sampler.look(number, z, lambda _: None)
        sampler.move(number, z)
    return z


@pytest.mark.parametrize(
    ("noise_level", "prediction", "tokens"),
    [("released_code", "epsilon", 1), (1.0, "v_prediction", 1), (0.0, "sample", 1), ("released_code", "epsilon", 2)],
)
def test_the_canvas_is_that_of_the_plain_algorithm(codec, noise_level, prediction, tokens):
    unet = tiny_unet()
    sampler = sampler_for(unet, codec, noise_level, prediction, tokens=tokens)
    z = solved(sampler)
    noises = [
        torch.cat([sampler.noise(n, row) for row in range(0, ROWS * W, W)], dim=1).double() for n in range(STEPS + 1)
    ]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    grid = sampler.embeddings.double().reshape(ROWS, COLUMNS, tokens, -1)
    expected = reference_canvas(copy.deepcopy(unet).double(), grid, noises, betas, noise_level, prediction)
    assert expected.std() > 0.1
    worst = (z.double() - expected).abs().max() / expected.std()
    assert worst < 1e-4


def test_the_pixels_are_those_of_the_plain_blending(codec):
    sampler = sampler_for(tiny_unet(), codec, "released_code")
    z = solved(sampler)
    decoder = CanvasDecoder(sampler.plan, sampler.models, World())
    bands = list(decoder.bands(z, 0, lambda _: None, lambda: None))
    assert len(bands) > 1, "one band would not test how they are joined"
    image = torch.cat([torch.from_numpy(rows) for _, rows in bands]).double()
    with torch.no_grad():
        expected = reference_pixels(copy.deepcopy(codec).double().decode, z.double(), 4)
    exact = ((expected + 1) * 127.5).clamp(0, 255).permute(1, 2, 0)
    assert image.shape == exact.shape
    assert exact.std() > 2
    assert (image - exact).abs().max() < 0.5 + 1e-3


def test_a_window_says_what_it_does_whatever_batch_it_is_in(codec):
    one, other = (solved(sampler_for(tiny_unet(), codec, 0.0, batch_size=size)) for size in (3, 7))
    assert (one - other).abs().max() < 1e-4


def test_pixels_begun_at_any_band_are_those_of_the_whole(codec):
    sampler = sampler_for(tiny_unet(), codec, 0.0)
    z = sampler.start()
    decoder = CanvasDecoder(sampler.plan, sampler.models, World())
    whole = [rows for rows in decoder.bands(z, 0, lambda _: None, lambda: None) if rows]
    for first in range(1, sampler.plan.num_bands):
        later = [rows for rows in decoder.bands(z, first, lambda _: None, lambda: None) if rows]
        assert [top for top, _ in later] == [top for top, _ in whole[first:]]
        assert all((a == b).all() for (_, a), (_, b) in zip(later, whole[first:], strict=True))
