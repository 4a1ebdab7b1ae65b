"""The reverse process, by any solver and, if given, under a classifier's guidance."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import Prediction
from hdtrain.diffusion.guidance import LatentClassifierFn, classifier_gradient
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.diffusion.solvers import StepNoise, make_solver, needs_noise

DenoiserFn = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def sample_latents(
    denoiser: DenoiserFn,
    schedule: NoiseSchedule,
    solver: SolverConfig,
    noise: Float[Tensor, "n c h w"],
    *,
    prediction: Prediction = "epsilon",
    classifier: LatentClassifierFn | None = None,
    labels: Int[Tensor, " n"] | None = None,
    guidance: float = 0.0,
    clip_latents: float | None = None,
    step_noise: StepNoise | None = None,
    begin: Float[Tensor, "n c h w"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "n c h w"]:
    """z̃_0 from z_T = `noise`, or from `begin` with noise as of the share `strength` of the timesteps.

    Args:
        denoiser: of (z_t, t), t an int64 tensor of n equal timesteps.
        schedule: the schedule that the denoiser was trained with.
        solver: which, and its steps.
        noise: standard normal.
        prediction: what the denoiser predicts.
        classifier: logits of ϕ(z_t, t); with `labels` and `guidance` > 0 it steers.
        labels: target classes.
        guidance: g of eq. 7.
        clip_latents: clamp ẑ_0 to ± this.
        step_noise: step number to the noise of that step; DDPM, and DDIM with η > 0, draw.
        begin: z_0 that the process begins from (SDEdit, Meng et al. 2022); needs a solver of one step (DDIM, DDPM).
        strength: in (0, 1], of `begin`.

    Raises:
        ConfigError: the solver's steps do not fit the schedule.
        ValueError: the solver draws and has nothing to draw from.
    """
    if needs_noise(solver) and step_noise is None:
        raise ValueError(f"{solver.kind} with eta={solver.eta:g} draws at every step and needs step_noise")
    steps = make_solver(solver, schedule, prediction, clip_latents)
    z, first = noise, 0
    if begin is not None:
        limit = strength * schedule.num_timesteps
        first = next((k for k, t in enumerate(steps.timesteps) if t <= limit), len(steps.timesteps) - 1)
        t = torch.full((len(noise),), steps.timesteps[first], dtype=torch.int64, device=noise.device)
        z = schedule.add_noise(begin, noise, t)
    for number, timestep in enumerate(steps.timesteps):
        if number < first:
            continue
        t = torch.full((len(z),), timestep, dtype=torch.int64, device=z.device)
        gradient = None
        says_something = schedule.alphas_cumprod[timestep] > 0  # at ᾱ = 0, z is noise and nothing else
        if classifier is not None and labels is not None and guidance > 0 and says_something:
            gradient = partial(_gradient, classifier, t, labels, guidance)
        z = steps.step(number, z, partial(_output, denoiser, t), gradient, step_noise)
    return z


def _output(denoiser: DenoiserFn, t: Tensor, z: Tensor) -> Tensor:
    return denoiser(z, t)


def _gradient(classifier: LatentClassifierFn, t: Tensor, labels: Tensor, guidance: float, z: Tensor) -> Tensor:
    return guidance * classifier_gradient(classifier, z, t, labels)
