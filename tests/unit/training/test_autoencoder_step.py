"""Training the autoencoder in two DeepSpeed engines is what ordinary autograd and AdamW do with the formulas."""

import copy

import numpy as np
import pytest
import torch
from tiny_chain import draw

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import TimmEncoder, TrainVaeConfig
from hdtrain.data.images import ImageBatch
from hdtrain.distributed.collectives import all_reduce_mean, device, init_process_group
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.world import World
from hdtrain.features.perceptual import build_perceptual
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.models.discriminator import PatchDiscriminator
from hdtrain.training.autoencoder import AutoencoderTask, adaptive_weight

GLOBAL_BATCH, STEPS, LR, CLIP = 4, 3, 1e-3, 0.5
W_PERCEPTUAL, W_ADVERSARIAL, W_KL = 0.3, 0.7, 1e-3
EPS = 1e-5
"""Far above the rounding errors of gradients, of which AdamW would make whole steps."""


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [draw(i % 2, rng) for i in range(GLOBAL_BATCH * STEPS)]


def unit_range(batch: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch_of(pixels: list[np.ndarray]) -> ImageBatch:
    return ImageBatch(np.stack(pixels), ["key"] * len(pixels), np.zeros(len(pixels), np.int64))


def norm_of_weight(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()


def reference_step(vae, disc, perceptual, optimizers, passes, adversarial: bool) -> dict[str, float]:
    """One step as the papers write it."""
    logs: dict[str, float] = {}

    def log(name: str, value: torch.Tensor) -> None:
        logs[name] = logs.get(name, 0.0) + float(value.detach()) / len(passes)

    disc_gradients = [torch.zeros_like(p) for p in disc.parameters()]
    for x, noise in passes:
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        x_hat = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample
        rec = (x - x_hat).abs().mean() + W_PERCEPTUAL * perceptual(x, x_hat)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = rec + W_KL * kl
        if adversarial:
            generator = -disc(x_hat).mean()
            weight = vae.decoder.conv_out.weight
            adaptive = (norm_of_weight(rec, weight) / (norm_of_weight(generator, weight) + 1e-4)).clamp(0, 1e4).detach()
            loss = loss + W_ADVERSARIAL * adaptive * generator
            log("loss/adversarial_weight", adaptive)
            hinge = 0.5 * (torch.relu(1 - disc(x)).mean() + torch.relu(1 + disc(x_hat.detach())).mean())
            log("loss/discriminator", hinge)
            for total, part in zip(disc_gradients, torch.autograd.grad(hinge, list(disc.parameters())), strict=True):
                total += part / len(passes)
        (loss / len(passes)).backward()
        log("loss/total", loss)
        log("loss/kl", kl)
    if adversarial:
        for p, gradient in zip(disc.parameters(), disc_gradients, strict=True):
            p.grad = gradient
    for model, optimizer in zip((vae, disc), optimizers, strict=True):
        if model is vae or adversarial:
            logs[f"norm {type(model).__name__}"] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
            optimizer.step()
        optimizer.zero_grad()
    return logs


def compare_with_plain_autograd(zero_stage: int, accumulation_steps: int, folder: str) -> None:
    """A few steps of the task on this rank's part of the batch, and of the papers' formulas on all of it."""
    world = World.from_environment()
    torch.manual_seed(0)
    vae, perceptual = build_autoencoder("kl-f4-tiny", 32), build_perceptual(TimmEncoder(name="test_resnet"))
    config = TrainVaeConfig(
        images=[folder],
        preset="kl-f4-tiny",
        reader={"resolution": 32, "flips": False},
        batch={"global_batch_size": GLOBAL_BATCH},
        optim={"lr": LR, "weight_decay": 0.1, "betas": (0.5, 0.9), "eps": EPS, "clip_grad_norm": CLIP},
        duration={"images": 100},
        engine={"zero_stage": zero_stage},
        perceptual={"kind": "none"},
        perceptual_weight=W_PERCEPTUAL,
        kl_weight=W_KL,
        adversarial={"start_images": GLOBAL_BATCH, "weight": W_ADVERSARIAL},
    )
    plan = BatchPlan(GLOBAL_BATCH, GLOBAL_BATCH // accumulation_steps // world.size, accumulation_steps, world.size)
    pixels = images()
    reference = copy.deepcopy(vae)
    task = AutoencoderTask(vae, perceptual, config, plan, batch_of(pixels[:2]))
    disc = copy.deepcopy(task.engines["discriminator"].replica()).requires_grad_(True).train()
    optimizers = [torch.optim.AdamW(m.parameters(), LR, (0.5, 0.9), EPS, 0.1) for m in (reference, disc)]

    for step in range(STEPS):
        reference.load_state_dict(task.trained().state_dict())  # one step at a time is compared
        disc.load_state_dict(task.engines["discriminator"].replica().state_dict())
        passes, got = [], {}
        for accumulation_step in range(accumulation_steps):
            parts = [[pixels[i] for i in plan.positions(step, accumulation_step, rank)] for rank in range(world.size)]
            draws = [Draws(0, step, accumulation_step, rank, plan, device()) for rank in range(world.size)]
            logs = task.micro_step(batch_of(parts[world.rank]), draws[world.rank], step * GLOBAL_BATCH)
            for name, value in logs.items():
                got[name] = got.get(name, 0.0) + float(all_reduce_mean(value.detach().clone())) / accumulation_steps
            noise = torch.cat([draw.normal("posterior", (3, 8, 8)) for draw in draws])
            passes.append((unit_range([image for part in parts for image in part]), noise))
        stepped = {name: engine.step(LR) for name, engine in task.engines.items()}
        assert stepped == {"autoencoder": True, "discriminator": True if step else None}
        expected = reference_step(reference, disc, perceptual, optimizers, passes, adversarial=step > 0)
        norm = expected.pop("norm AutoencoderKL")
        assert norm > CLIP, "nothing was clipped"
        assert task.generator.grad_norm == pytest.approx(norm, rel=1e-4)
        expected.pop("norm PatchDiscriminator", None)
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert ("loss/discriminator" in got) == (step > 0)
    compare_states(task, (reference, disc), optimizers)


def compare_states(task: AutoencoderTask, models, optimizers) -> None:
    """Weights and first moments of both engines against plain torch's."""
    for engine, model, optimizer in zip(task.engines.values(), models, optimizers, strict=True):
        state = engine.state(is_main=True)
        weights, moments = state[f"{engine.name}.weights"], state[f"{engine.name}.exp_avg"]
        error = total = 0.0
        prefix = "vae." if engine.name == "autoencoder" else ""
        for name, p in model.named_parameters():
            moment = optimizer.state[p]["exp_avg"]
            error += float((weights[prefix + name] - p).double().square().sum())
            total += float(p.double().square().sum())
            assert (weights[prefix + name] - p).abs().max() < 3e-7, f"weights of {engine.name} {name}"
            difference = (moments[prefix + name] - moment).abs().max() / moment.abs().max()
            assert difference < 5e-5, f"gradients of {engine.name} {name}"
        print(engine.name, (error / total) ** 0.5)
        assert (error / total) ** 0.5 < 1e-7


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_engines_compute_what_plain_autograd_computes(zero_stage, accumulation_steps, tmp_path):
    init_process_group()
    compare_with_plain_autograd(zero_stage, accumulation_steps, str(tmp_path))


def test_the_adaptive_weight_is_the_ratio_of_the_norms_on_the_last_convolution():
    torch.manual_seed(0)
    vae, disc = build_autoencoder("kl-f4-tiny", 32), PatchDiscriminator(16)
    x, features = unit_range(images()[:2]), []
    weight = vae.decoder.conv_out.weight
    vae.decoder.conv_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    x_hat = vae(x).sample
    rec, generator = (x - x_hat).square().mean(), -disc(x_hat).mean()
    expected = norm_of_weight(rec, weight) / (norm_of_weight(generator, weight) + 1e-4)
    gradients = tuple(torch.autograd.grad(loss, x_hat, retain_graph=True)[0] for loss in (rec, generator))
    torch.testing.assert_close(adaptive_weight(gradients, features[0], weight.shape), expected, rtol=1e-5, atol=0)
    assert adaptive_weight((gradients[0] * 1e9, gradients[1] * 0), features[0], weight.shape) == 1e4
