"""The steps of each solver, which are diffusers', and where the classifier's term goes in them.

A solver holds the state of one batch: make a new one for every batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import Prediction
from hdtrain.diffusion.guidance import guided
from hdtrain.diffusion.objectives import predicted_z0
from hdtrain.diffusion.schedule import NoiseSchedule, timesteps_of

Field = Callable[[Tensor], Tensor]
"""At one timestep, z_t to a tensor of its shape: the denoiser's output, or g·∇ log p_ϕ(y | z_t)."""
StepNoise = Callable[[int], Tensor]
"""Number of a step to its noise."""


class Solver(ABC):
    """Takes z from one timestep to the next.

    Args:
        schedule: the schedule that the denoiser was trained with.
        prediction: what the denoiser predicts.
        clip_latents: clamp ẑ_0 to ± this.
    """

    timesteps: list[int]
    """Largest first."""

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction, clip_latents: float | None):
        self.schedule, self.prediction, self.clip_latents = schedule, prediction, clip_latents

    @abstractmethod
    def step(
        self, number: int, z: Float[Tensor, "n c h w"], denoise: Field, gradient: Field | None, noise: StepNoise | None
    ) -> Float[Tensor, "n c h w"]:
        """z at the timestep after `timesteps[number]`.

        Args:
            number: of the step.
            z: at its timestep.
            denoise: the denoiser's output there.
            gradient: g·∇ log p_ϕ(y | z_t) there; None for a step without guidance.
            noise: of each step; needed by a solver that draws.
        """

    def _alpha_bar(self, number: int) -> float:
        return float(self.schedule.alphas_cumprod[self.timesteps[number]])


class Ddim(Solver):
    """DDIM (Song et al. 2021, eq. 12 and 16) with ε̂ = ε − g·√(1−ᾱ_t)·∇ (HistoDiffusion eq. 7 and 8)."""

    def __init__(self, config: SolverConfig, schedule: NoiseSchedule, prediction: Prediction, clip: float | None):
        super().__init__(schedule, prediction, clip)
        # diffusers takes the root of 1 − ᾱ − σ², which at zero SNR and η = 1 is zero, or by rounding less than that.
        self.eta = min(config.eta, 1 - 1e-6) if schedule.config.zero_terminal_snr else config.eta
        self._scheduler = schedule.ddim(clip, prediction)
        self.timesteps = timesteps_of(self._scheduler, config.steps)

    def step(
        self, number: int, z: Float[Tensor, "n c h w"], denoise: Field, gradient: Field | None, noise: StepNoise | None
    ) -> Float[Tensor, "n c h w"]:
        """See `Solver.step`."""
        output = denoise(z)
        if gradient is not None:
            output = guided(self.prediction, output, gradient(z), self._alpha_bar(number), 1.0)
        after: Tensor = self._scheduler.step(
            output,
            self.timesteps[number],
            z,
            eta=self.eta,
            use_clipped_model_output=True,
            variance_noise=noise(number) if self.eta > 0 and noise is not None else None,
            return_dict=False,
        )[0]
        return after


class Ddpm(Solver):
    """z_{t−1} ~ N(μ + g·Σ·∇, Σ) with Σ = β̃_t (Dhariwal & Nichol 2021, algorithm 1).

    β_t is respaced to the timesteps that are taken (Nichol & Dhariwal 2021, section 4): 1 − β_t = ᾱ here / ᾱ after the
    step. diffusers' own step would draw its noise for the whole batch; hence Ho et al. 2020, eq. 6 and 7, once more.
    """

    def __init__(self, config: SolverConfig, schedule: NoiseSchedule, prediction: Prediction, clip: float | None):
        super().__init__(schedule, prediction, clip)
        self.timesteps = timesteps_of(schedule.ddpm(config.steps), config.steps)

    def step(
        self, number: int, z: Float[Tensor, "n c h w"], denoise: Field, gradient: Field | None, noise: StepNoise | None
    ) -> Float[Tensor, "n c h w"]:
        """See `Solver.step`. The last step has no variance, so neither noise nor guidance."""
        here = self._alpha_bar(number)
        last = number == len(self.timesteps) - 1
        after = 1.0 if last else self._alpha_bar(number + 1)
        alpha = here / after
        z0 = predicted_z0(self.prediction, denoise(z), z, here)
        if self.clip_latents is not None:
            z0 = z0.clamp(-self.clip_latents, self.clip_latents)
        mean = (after**0.5 * (1 - alpha) * z0 + alpha**0.5 * (1 - after) * z) / (1 - here)
        if last:
            return mean
        variance = (1 - after) / (1 - here) * (1 - alpha)
        if gradient is not None:
            mean = mean + variance * gradient(z)
        return mean if noise is None else mean + variance**0.5 * noise(number)


class Multistep(Solver):
    """DPM-Solver++ (Lu et al. 2022) and UniPC (Zhao et al. 2023), which remember ẑ_0 of earlier steps.

    The classifier's term goes into ẑ_0, or with `splitting` (Wizadwongsa & Suwajanakorn 2023, arXiv 2301.11558) into
    steps of its own, of first order. With x = z/√ᾱ and σ = √((1−ᾱ)/ᾱ) the ODE is dx/dσ = ε(z) − g·√(1−ᾱ)·∇. Strang's
    scheme takes half a step of the second term before and half after each step of the first; the half after one and the
    half before the next are at the same place, so they are taken at once, with one gradient.

    Clamping is of ẑ_0 with the term in it, also under splitting (`_slope`): clamping what the denoiser says alone is
    another ODE, which no number of steps brings to DDIM's images.
    """

    def __init__(self, config: SolverConfig, schedule: NoiseSchedule, prediction: Prediction, clip: float | None):
        super().__init__(schedule, prediction, clip)
        assert config.kind in ("dpm-solver++", "unipc")
        kind: Literal["dpm-solver++", "unipc"] = config.kind
        self.splitting = config.splitting
        self._scheduler = schedule.multistep(kind, config.order)
        self.timesteps = timesteps_of(self._scheduler, config.steps)
        self._began_at: int | None = None
        self._z0: Tensor | None = None  # what the denoiser said last, not clamped

    def step(
        self, number: int, z: Float[Tensor, "n c h w"], denoise: Field, gradient: Field | None, noise: StepNoise | None
    ) -> Float[Tensor, "n c h w"]:
        """See `Solver.step`. Draws no noise."""
        alpha_bar = self._alpha_bar(number)
        if gradient is not None and self.splitting:
            move = self._span(number) * alpha_bar**0.5 * self._slope(gradient(z), alpha_bar)
            z = z + move
            self._move_before(number, move)
        z0 = self._z0 = predicted_z0(self.prediction, denoise(z), z, alpha_bar)
        if gradient is not None and not self.splitting:
            z0 = guided("sample", z0, gradient(z), alpha_bar, 1.0)
        if self.clip_latents is not None:
            z0 = z0.clamp(-self.clip_latents, self.clip_latents)
        after: Tensor = self._scheduler.step(z0, self.timesteps[number], z, return_dict=False)[0]
        return after

    def _slope(self, gradient: Tensor, alpha_bar: float) -> Tensor:
        """The classifier's −dx/dσ: g·√(1−ᾱ)·∇, or of it what clamping leaves, (clamp(ẑ_0 + σ·slope) − clamp(ẑ_0)) / σ.

        The denoiser's ẑ_0 here is not known before the move, and asking twice would cost as much as a step. Its last
        one stands for it, and at the start 0, the mean of latents.
        """
        slope = (1 - alpha_bar) ** 0.5 * gradient
        if self.clip_latents is None:
            return slope
        sigma, limit = ((1 - alpha_bar) / alpha_bar) ** 0.5, self.clip_latents
        z0 = slope.new_zeros(()) if self._z0 is None else self._z0
        return ((z0 + sigma * slope).clamp(-limit, limit) - z0.clamp(-limit, limit)) / sigma

    def _span(self, number: int) -> float:
        """How far in σ the classifier's term is taken at this timestep.

        From half way to the timestep before to half way to the next; at the ends from the first on, and to σ = 0.
        """
        sigmas = self._scheduler.sigmas
        if self._began_at is None:
            self._began_at = number  # the first step is without guidance where z_T is nothing but noise
        here, after = float(sigmas[number]), float(sigmas[number + 1])
        from_ = here if number == self._began_at else (float(sigmas[number - 1]) + here) / 2
        to = 0.0 if number == len(self.timesteps) - 1 else (here + after) / 2
        return from_ - to

    def _move_before(self, number: int, move: Tensor) -> None:
        """UniPC's corrector takes the step before this one again, from where it began; so `move` has to be in that.

        z enters such a step with the factor √(1−ᾱ) after it over √(1−ᾱ) before it.
        """
        scheduler = self._scheduler
        if isinstance(scheduler, UniPCMultistepScheduler) and scheduler.last_sample is not None:
            before, here = (1 - self._alpha_bar(i) for i in (number - 1, number))
            scheduler.last_sample = scheduler.last_sample + move * (before / here) ** 0.5


def make_solver(
    config: SolverConfig, schedule: NoiseSchedule, prediction: Prediction = "epsilon", clip_latents: float | None = None
) -> Solver:
    """The solver of one batch.

    Raises:
        ConfigError: `steps` does not fit the schedule.
    """
    kinds: dict[str, type[Ddim | Ddpm | Multistep]] = {"ddim": Ddim, "ddpm": Ddpm}
    return kinds.get(config.kind, Multistep)(config, schedule, prediction, clip_latents)


def needs_noise(config: SolverConfig) -> bool:
    """Whether its steps draw."""
    return config.kind == "ddpm" or config.eta > 0
