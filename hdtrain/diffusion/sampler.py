"""The reverse process with DDIM steps and, if given, a classifier's guidance."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import Prediction
from hdtrain.diffusion.guidance import LatentClassifierFn, classifier_gradient, guided
from hdtrain.diffusion.schedule import NoiseSchedule, timesteps_of

DenoiserFn = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def ddim_sample(
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
    step_noise: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "n c h w"]:
    """z̃_0 from z_T = `noise`.

    Args:
        denoiser: of (z_t, t), t an int64 tensor of n equal timesteps.
        schedule: the schedule that the denoiser was trained with.
        solver: number of steps S and η.
        noise: standard normal.
        prediction: what the denoiser predicts.
        classifier: logits of ϕ(z_t, t); with `labels` and `guidance` > 0 it steers.
        labels: target classes.
        guidance: g of eq. 7.
        clip_latents: clamp ẑ_0 to ± this.
        step_noise: step number to the noise of that step; needed for η > 0.
    """
    scheduler = schedule.ddim(clip_latents, prediction)
    timesteps = timesteps_of(scheduler, solver.steps)
    z = noise
    for step, timestep in enumerate(timesteps):
        t = torch.full((len(z),), timestep, dtype=torch.int64, device=z.device)
        output = denoiser(z, t)
        alpha_bar = float(schedule.alphas_cumprod[timestep])
        if classifier is not None and labels is not None and guidance > 0 and alpha_bar > 0:
            gradient = classifier_gradient(classifier, z, t, labels)
            output = guided(prediction, output, gradient, alpha_bar, guidance)
        extra = step_noise(step) if solver.eta > 0 and step_noise is not None else None
        z = scheduler.step(
            output,
            timestep,
            z,
            eta=solver.eta,
            use_clipped_model_output=True,
            variance_noise=extra,
            return_dict=False,
        )[0]
    return z
