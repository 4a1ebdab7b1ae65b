"""DDPM, DPM-Solver++ and UniPC: diffusers' loops without guidance; with it the equations, and a world that is known."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from mixture import Mixture
from mixture import noise as mixture_noise
from test_sampler import LABELS, LINEAR, SCALED, SHAPE, WEIGHT, ZERO, classifier, denoiser, restated, step_noise

from hdtrain.config.load import validate
from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.errors import ConfigError

NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
GUIDED = {"classifier": classifier, "labels": LABELS}
FAST = [("dpm-solver++", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]
PREDICTED = [
    *((LINEAR, prediction) for prediction in ("epsilon", "v_prediction", "sample")),
    (SCALED, "epsilon"),
    (ZERO, "v_prediction"),
    (ZERO, "sample"),
]


def drawn_from(seed: int):
    """Noise of every step from one generator, as diffusers draws."""
    source = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(SHAPE, generator=source)


@pytest.mark.parametrize(("config", "prediction"), PREDICTED)
@pytest.mark.parametrize("clip", [None, 1.5])
def test_ddpm_without_guidance_is_the_loop_of_diffusers(config, prediction, clip):
    ours = sample_latents(
        denoiser, NoiseSchedule(config), SolverConfig(kind="ddpm", steps=20), NOISE,
        prediction=prediction, clip_latents=clip, step_noise=drawn_from(3),
    )  # fmt: skip
    plain = DDPMScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.kind,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        prediction_type=prediction,
        steps_offset=1,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing" if config.zero_terminal_snr else "leading",
    )
    plain.set_timesteps(20)
    source, z = torch.Generator().manual_seed(3), NOISE
    for t in plain.timesteps:
        z = plain.step(denoiser(z, t.expand(3)), t, z, generator=source).prev_sample
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-5)


def test_ddpm_with_as_many_steps_as_timesteps_is_that_of_ho_et_al():
    config = NoiseScheduleConfig(num_train_timesteps=50, beta_end=0.2)
    solver = SolverConfig(kind="ddpm", steps=50)
    ours = sample_latents(denoiser, NoiseSchedule(config), solver, NOISE, step_noise=step_noise)
    beta = np.linspace(1e-4, 0.2, 50)
    alpha_bar, z = np.cumprod(1 - beta), NOISE.double().numpy()
    for step, t in enumerate(range(49, -1, -1)):
        epsilon = 0.7 * np.tanh(z) + t / 2000
        z = (z - beta[t] / np.sqrt(1 - alpha_bar[t]) * epsilon) / np.sqrt(1 - beta[t])  # algorithm 2
        if t:
            variance = beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
            z = z + np.sqrt(variance) * step_noise(step).double().numpy()
    np.testing.assert_allclose(ours.numpy(), z, rtol=2e-4, atol=2e-4 * np.abs(z).max())


def gradient_of(z: np.ndarray, t: int) -> np.ndarray:
    """∇ log softmax of the linear classifier, by hand, in float64."""
    weight, scale = WEIGHT.double().numpy(), 1 + t / 1000
    logits = z.reshape(len(z), -1) @ weight.T * scale
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return ((weight[LABELS.numpy()] - p @ weight) * scale).reshape(z.shape)


@pytest.mark.parametrize("guidance", [1.0, 10.0])
def test_guided_ddpm_shifts_the_mean_by_g_times_the_variance_times_the_gradient(guidance):
    ours = sample_latents(
        denoiser, NoiseSchedule(LINEAR), SolverConfig(kind="ddpm", steps=25), NOISE,
        guidance=guidance, step_noise=step_noise, **GUIDED,
    )  # fmt: skip

    def reference(guidance: float) -> np.ndarray:
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        z = NOISE.double().numpy()
        for step, t in enumerate(range(961, 0, -40)):
            a, before = alpha_bar[t], alpha_bar[t - 40] if t > 40 else 1.0
            beta = 1 - a / before
            epsilon = 0.7 * np.tanh(z) + t / 2000
            variance = beta * (1 - before) / (1 - a)
            mean = (z - beta / np.sqrt(1 - a) * epsilon) / np.sqrt(1 - beta) + guidance * variance * gradient_of(z, t)
            z = mean + np.sqrt(variance) * step_noise(step).double().numpy()
        return z

    expected = reference(guidance)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    assert np.abs(expected - reference(0.0)).max() > 0.1


@pytest.mark.parametrize(("kind", "scheduler"), FAST)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("config", "prediction"), PREDICTED)
def test_fast_solvers_without_guidance_are_the_loops_of_diffusers(kind, scheduler, order, config, prediction):
    solver = SolverConfig(kind=kind, steps=12, order=order)
    ours = sample_latents(denoiser, NoiseSchedule(config), solver, NOISE, prediction=prediction)
    plain = scheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.kind,
        prediction_type=prediction,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        solver_order=order,
    )
    plain.set_timesteps(12)
    z = NOISE
    for t in plain.timesteps:
        z = plain.step(denoiser(z, t.expand(3)), t, z).prev_sample
    # Under zero terminal SNR diffusers puts 2⁻²⁴ for the last ᾱ, and here ẑ_0 is that of ᾱ = 0.
    worst = 1e-3 if config.zero_terminal_snr else 1e-4
    torch.testing.assert_close(ours, z, rtol=worst, atol=worst * float(z.abs().max()))


@pytest.mark.parametrize(("kind", "scheduler"), FAST)
def test_guided_fast_solvers_unless_told_otherwise_are_the_loops_of_diffusers(kind, scheduler):
    """Which are given ε̂ = ε − g·√(1−ᾱ)·∇, as Lu et al. 2022 have it."""
    ours = sample_latents(
        denoiser, NoiseSchedule(LINEAR), SolverConfig(kind=kind, steps=12), NOISE, guidance=5, **GUIDED
    )
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    plain, z = scheduler(beta_schedule="linear"), NOISE
    plain.set_timesteps(12)
    for t in plain.timesteps:
        term = 5 * np.sqrt(1 - alpha_bar[t]) * gradient_of(z.double().numpy(), int(t))
        z = plain.step(denoiser(z, t.expand(3)) - torch.from_numpy(term).float(), t, z).prev_sample
    torch.testing.assert_close(ours, z, rtol=5e-4, atol=5e-4 * float(z.abs().max()))


@pytest.mark.parametrize("splitting", [True, False])
@pytest.mark.parametrize("kind", ["dpm-solver++", "unipc"])
def test_guided_fast_solvers_of_first_order_are_the_equations(kind, splitting):
    """UniPC of first order still corrects: what it predicted is taken again with the mean of both ends' ẑ_0."""
    solver = SolverConfig(kind=kind, steps=20, order=1, splitting=splitting)
    ours = sample_latents(denoiser, NoiseSchedule(LINEAR), solver, NOISE, guidance=5.0, **GUIDED)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    timesteps = np.linspace(0, 999, 21).round()[:0:-1].astype(int)
    a = np.concatenate([alpha_bar[timesteps], [1.0]])
    sigma = np.sqrt((1 - a) / a)
    middle = np.concatenate([sigma[:1], (sigma[:-2] + sigma[1:-1]) / 2, [0.0]])

    def first_order(z: np.ndarray, i: int, z0: np.ndarray) -> np.ndarray:
        ratio = sigma[i + 1] / sigma[i]
        return np.sqrt(a[i + 1]) * (ratio * z / np.sqrt(a[i]) + (1 - ratio) * z0)

    z = NOISE.double().numpy()
    start = previous = None
    for i, t in enumerate(timesteps):
        move = 5.0 * np.sqrt(1 - a[i]) * np.sqrt(a[i]) * gradient_of(z, t)
        if splitting:
            z = z + (middle[i] - middle[i + 1]) * move
        z0 = (z - np.sqrt(1 - a[i]) * (0.7 * np.tanh(z) + t / 2000)) / np.sqrt(a[i])
        if not splitting:
            z0 = z0 + 5.0 * sigma[i] * np.sqrt(1 - a[i]) * gradient_of(z, t)
        if kind == "unipc" and i:
            z = first_order(start, i - 1, (previous + z0) / 2)
            if splitting:
                z = z + (middle[i] - middle[i + 1]) * move
        start, previous = z, z0
        z = first_order(z, i, z0)
    np.testing.assert_allclose(ours.numpy(), z, rtol=5e-4, atol=5e-4 * np.abs(z).max())


ALL = [
    SolverConfig(steps=50),
    SolverConfig(steps=50, eta=1.0),
    SolverConfig(kind="ddpm", steps=50),
    *(
        SolverConfig(kind=kind, steps=20, order=order, splitting=splitting)
        for kind in ("dpm-solver++", "unipc")
        for order in (2, 3)
        for splitting in (True, False)
    ),
]


def name_of(solver: SolverConfig) -> str:
    return f"{solver.kind}-eta{solver.eta:g}-order{solver.order}{'-splitting' * solver.splitting}"


def drawn(step: int) -> torch.Tensor:
    return torch.randn(64, 2, 2, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


@pytest.mark.parametrize("solver", ALL, ids=name_of)
@pytest.mark.parametrize(
    ("config", "prediction", "guidance"),
    [(LINEAR, "epsilon", 1.0), (LINEAR, "v_prediction", 10.0), (ZERO, "v_prediction", 1.0), (ZERO, "sample", 10.0)],
)
def test_guided_samples_land_in_the_class_that_was_asked_for(solver, config, prediction, guidance):
    world, labels = Mixture(config, prediction), torch.arange(64) % 2
    settings = {"prediction": prediction, "labels": labels, "step_noise": drawn, "clip_latents": 3.0}

    def samples(guidance: float) -> torch.Tensor:
        return sample_latents(
            world.denoiser, world.schedule, solver, mixture_noise(64), classifier=world.classifier, guidance=guidance,
            **settings,
        )  # fmt: skip

    found, free = samples(guidance), samples(0.0)
    right, by_chance = (float(((z[:, 0, 0, 0] < 0).long() == labels).double().mean()) for z in (found, free))
    assert right >= (0.95 if solver.kind == "ddpm" else 1.0)  # its variance, and so its guidance, is small in big steps
    assert 0.25 < by_chance < 0.75
    assert float(found.abs().max()) < 3.0


@cache
def in_the_known_world(solver: SolverConfig, guidance: float) -> torch.Tensor:
    """Samples of its first class."""
    world, labels = Mixture(LINEAR), torch.zeros(16, dtype=torch.int64)
    models = {"classifier": world.classifier, "labels": labels, "guidance": guidance}
    return sample_latents(world.denoiser, world.schedule, solver, mixture_noise(16), **models)


@pytest.mark.parametrize("kind", ["dpm-solver++", "unipc"])
@pytest.mark.parametrize("splitting", [True, False])
@pytest.mark.parametrize("guidance", [3.0, 10.0])
def test_many_steps_come_to_the_solution_that_many_ddim_steps_come_to(kind, splitting, guidance):
    exact = in_the_known_world(SolverConfig(steps=500), guidance)
    few, many = (
        in_the_known_world(SolverConfig(kind=kind, steps=steps, splitting=splitting), guidance) for steps in (20, 150)
    )
    assert float((few - exact).abs().mean()) < 0.1
    assert float((many - exact).abs().mean()) < min(0.01, float((few - exact).abs().mean()) / 5)


@cache
def clamped_in_the_known_world(solver: SolverConfig) -> torch.Tensor:
    """Under a strong classifier that is never satisfied, and a clamp well inside of what it asks for."""
    world, slope = Mixture(LINEAR), torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)

    def steep(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return world.classifier(z, t) + torch.outer(z.double().flatten(1) @ slope, torch.tensor([1.0, -1.0]).double())

    return sample_latents(
        world.denoiser, world.schedule, solver, mixture_noise(16), classifier=steep, guidance=10.0, clip_latents=0.9,
        labels=torch.arange(16) % 2,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dpm-solver++", "unipc"])
@pytest.mark.parametrize("splitting", [True, False])
def test_clamped_and_guided_many_steps_come_to_what_many_ddim_steps_come_to(kind, splitting):
    """A clamp that looked at the denoiser's ẑ_0 without the classifier's term would solve another ODE."""
    exact = clamped_in_the_known_world(SolverConfig(steps=500))
    few, many = (
        clamped_in_the_known_world(SolverConfig(kind=kind, steps=steps, splitting=splitting)) for steps in (20, 150)
    )
    assert float((few - exact).abs().mean()) < 0.12
    assert float((many - exact).abs().mean()) < 0.01


@pytest.mark.parametrize("solver", ALL, ids=name_of)
def test_a_sample_depends_on_its_own_noise_and_class_alone(solver):
    """No state stays in a solver from batch to batch, and none is shared within one."""

    def samples(rows: list[int]) -> torch.Tensor:
        return sample_latents(
            lambda z, t: denoiser(z, t), NoiseSchedule(LINEAR), solver, NOISE[rows], classifier=classifier,
            labels=LABELS[rows], guidance=2.0, step_noise=lambda step: step_noise(step)[rows],
        )  # fmt: skip

    together = samples([0, 1, 2])
    for row in (2, 0, 1):
        torch.testing.assert_close(samples([row])[0], together[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ALL, ids=name_of)
def test_at_pure_noise_no_solver_asks_the_classifier_and_samples_stay_finite(solver):
    asked = []

    def watched(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(int(t[0]))
        return classifier(z, t)

    models = {"classifier": watched, "labels": LABELS, "guidance": 2.0, "step_noise": step_noise}
    z = sample_latents(denoiser, NoiseSchedule(ZERO), solver, NOISE, prediction="v_prediction", **models)
    assert asked
    assert 999 not in asked
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("solver", [s for s in ALL if s.kind != "ddim"], ids=name_of)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_restated_model_gives_the_same_samples_with_every_solver(solver, prediction):
    expected, ours = (
        sample_latents(
            restated(name, LINEAR), NoiseSchedule(LINEAR), solver, NOISE.double(), prediction=name, guidance=3.0,
            clip_latents=2.0, step_noise=lambda step: step_noise(step).double(), **GUIDED,
        )
        for name in ("epsilon", prediction)
    )  # fmt: skip
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (SolverConfig(kind="ddpm", steps=7), "must divide 1000 timesteps evenly, got 7; near it: .*8"),
        (SolverConfig(kind="unipc", steps=1000), "must be less than the 1000 timesteps, got 1000"),
    ],
)
def test_steps_that_do_not_fit_a_solver_are_refused(solver, said):
    with pytest.raises(ConfigError, match=said):
        sample_latents(denoiser, NoiseSchedule(LINEAR), solver, NOISE, step_noise=step_noise)


def test_a_solver_that_draws_wants_something_to_draw_from():
    for solver in (SolverConfig(kind="ddpm", steps=20), SolverConfig(steps=20, eta=0.5)):
        with pytest.raises(ValueError, match="draws at every step and needs step_noise"):
            sample_latents(denoiser, NoiseSchedule(LINEAR), solver, NOISE)


def test_eta_is_ddims():
    with pytest.raises(ConfigError, match=r"eta belongs to solver\.kind=ddim; unipc has none"):
        validate(SolverConfig, {"kind": "unipc", "eta": 1.0}, "x")
