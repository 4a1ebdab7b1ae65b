"""Noise schedules and solvers are diffusers'; this is where a config becomes one."""

from functools import cached_property

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.training import NoiseScheduleConfig, Prediction
from hdtrain.errors import ConfigError


class NoiseSchedule:
    """β_t, ᾱ_t and the forward process q(z_t | z_0), T = `num_train_timesteps`."""

    def __init__(self, config: NoiseScheduleConfig):
        self.config = config
        self.num_timesteps = config.num_train_timesteps

    def ddim(self, clip_latents: float | None = None, prediction: Prediction = "epsilon") -> DDIMScheduler:
        """DDIM for a denoiser that predicts `prediction`; ẑ_0 clamped to ± `clip_latents` if given.

        Timesteps are 1, 1 + T/S, …, or with zero terminal SNR T/S − 1, 2T/S − 1, … (`trailing`), since there the last
        of training must come first. The final step goes to ᾱ_0.
        """
        return DDIMScheduler(
            num_train_timesteps=self.num_timesteps,
            beta_start=self.config.beta_start,
            beta_end=self.config.beta_end,
            beta_schedule=self.config.kind,
            clip_sample=clip_latents is not None,
            clip_sample_range=clip_latents or 1.0,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
            rescale_betas_zero_snr=self.config.zero_terminal_snr,
            timestep_spacing="trailing" if self.config.zero_terminal_snr else "leading",
        )

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        """ᾱ_t = ∏(1 − β_i); with zero terminal SNR the last is 0."""
        alphas: Tensor = self.ddim().alphas_cumprod
        return alphas

    def alpha_bar(self, t: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """ᾱ of these timesteps, on their device."""
        return self.alphas_cumprod.to(t.device)[t]

    def add_noise(
        self, z0: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε."""
        alpha = self.alpha_bar(t).view(-1, 1, 1, 1)
        return alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise


def timesteps_of(scheduler: DDIMScheduler, steps: int) -> list[int]:
    """The timesteps of a solver with `steps` steps, largest first.

    Raises:
        ConfigError: `steps` does not divide the number of training timesteps into equal parts, of at least two where
            the first timestep is 1.
    """
    total = scheduler.config["num_train_timesteps"]  # type: ignore[index]
    trailing = scheduler.config["timestep_spacing"] == "trailing"  # type: ignore[index]
    fitting = [s for s in range(1, total + trailing) if total % s == 0]
    if steps not in fitting:
        nearest = sorted(fitting, key=lambda s: abs(s - steps))[:4]
        problem = f"solver.steps: must divide {total} timesteps evenly, got {steps}; near it: {sorted(nearest)}"
        raise ConfigError("solver", [problem])
    scheduler.set_timesteps(steps)
    return [int(t) for t in torch.as_tensor(scheduler.timesteps)]
