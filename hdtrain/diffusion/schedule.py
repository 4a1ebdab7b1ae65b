"""Noise schedules and solvers are diffusers'; this is where a config becomes one."""

from functools import cached_property
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float, Int
from torch import Tensor

from hdtrain.config.training import NoiseScheduleConfig, Prediction
from hdtrain.diffusion.steps import check_steps

Scheduler = DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler


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
            **self._betas(prediction),
            clip_sample=clip_latents is not None,
            clip_sample_range=clip_latents or 1.0,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing=self._spacing,
        )

    def ddpm(self, steps: int) -> DDPMScheduler:
        """DDPM on `ddim`'s timesteps, or on all T of them: 0 … T−1. The last step goes to ᾱ = 1."""
        offset = int(steps < self.num_timesteps)
        return DDPMScheduler(**self._betas("epsilon"), steps_offset=offset, timestep_spacing=self._spacing)

    def multistep(
        self, kind: Literal["dpm-solver++", "unipc"], order: int
    ) -> DPMSolverMultistepScheduler | UniPCMultistepScheduler:
        """DPM-Solver++ or UniPC, given ẑ_0; timesteps are spread evenly from T − 1 on, the last step goes to ᾱ = 1."""
        scheduler = DPMSolverMultistepScheduler if kind == "dpm-solver++" else UniPCMultistepScheduler
        return scheduler(**self._betas("sample"), solver_order=order, timestep_spacing="linspace")

    def _betas(self, prediction: Prediction) -> dict[str, Any]:
        return {
            "num_train_timesteps": self.num_timesteps,
            "beta_start": self.config.beta_start,
            "beta_end": self.config.beta_end,
            "beta_schedule": self.config.kind,
            "rescale_betas_zero_snr": self.config.zero_terminal_snr,
            "prediction_type": prediction,
        }

    @property
    def _spacing(self) -> Literal["leading", "trailing"]:
        return "trailing" if self.config.zero_terminal_snr else "leading"

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


def timesteps_of(scheduler: Scheduler, steps: int) -> list[int]:
    """The timesteps of a solver with `steps` steps, largest first.

    Raises:
        ConfigError: as `check_steps`.
    """
    config: Any = scheduler.config
    total = config["num_train_timesteps"]
    kinds = {DDIMScheduler: "ddim", DDPMScheduler: "ddpm"}
    check_steps(kinds.get(type(scheduler), "other"), steps, total, config["timestep_spacing"] == "trailing")
    scheduler.set_timesteps(steps)
    return [int(t) for t in torch.as_tensor(scheduler.timesteps)]
