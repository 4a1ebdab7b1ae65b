"""The sampler against diffusers without guidance, and against the equations in float64 with it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.guidance import classifier_gradient, guided
from hdtrain.diffusion.sampler import sample_latents
from hdtrain.diffusion.schedule import NoiseSchedule, timesteps_of
from hdtrain.errors import ConfigError

LINEAR = NoiseScheduleConfig()
ZERO = NoiseScheduleConfig(zero_terminal_snr=True)
SCALED = NoiseScheduleConfig(kind="scaled_linear", beta_start=0.0015, beta_end=0.0155)
SHAPE = (3, 2, 4, 4)


def denoiser(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.7 * torch.tanh(z) + (t / 2000).view(-1, 1, 1, 1).to(z.dtype)


def step_noise(step: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + step))


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("config", "prediction"),
    [
        *((LINEAR, prediction) for prediction in ("epsilon", "v_prediction", "sample")),
        (SCALED, "epsilon"),
        (ZERO, "v_prediction"),
        (ZERO, "sample"),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_guidance_it_is_the_loop_of_diffusers(config, prediction, eta, noise):
    solver = SolverConfig(steps=20, eta=eta)
    schedule = NoiseSchedule(config)
    ours = sample_latents(denoiser, schedule, solver, noise, prediction=prediction, step_noise=step_noise)
    plain = DDIMScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.kind,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing" if config.zero_terminal_snr else "leading",
    )
    plain.set_timesteps(20)
    z = noise
    for step, t in enumerate(plain.timesteps):
        extra = step_noise(step) if eta else None
        z = plain.step(denoiser(z, t.expand(3)), t, z, eta=eta, variance_noise=extra).prev_sample
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-5)


def test_the_timesteps_are_those_of_the_paper_and_none_lies_outside_the_schedule():
    schedule = NoiseSchedule(LINEAR)
    assert timesteps_of(schedule.ddim(), 200) == list(range(996, 0, -5))
    assert timesteps_of(schedule.ddim(), 500) == list(range(999, 0, -2))
    for steps, near in [(1000, "500"), (300, "250"), (30, "25")]:
        with pytest.raises(
            ConfigError, match=rf"must divide 1000 timesteps evenly, got {steps}; near it: .*\b{near}\b"
        ):
            timesteps_of(schedule.ddim(), steps)


def test_under_zero_terminal_snr_sampling_begins_at_the_last_timestep():
    schedule = NoiseSchedule(ZERO)
    assert timesteps_of(schedule.ddim(), 4) == [999, 749, 499, 249]
    assert timesteps_of(schedule.ddim(), 1000) == list(range(999, -1, -1))
    with pytest.raises(ConfigError, match="must divide 1000 timesteps evenly, got 30"):
        timesteps_of(schedule.ddim(), 30)


def test_the_forward_process_is_that_of_diffusers(noise):
    z0, t = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 499, 999])
    for config in (LINEAR, SCALED):
        arguments = {"beta_start": config.beta_start, "beta_end": config.beta_end, "beta_schedule": config.kind}
        ours = NoiseSchedule(config).add_noise(z0, noise, t)
        for plain in (DDPMScheduler(**arguments), DDIMScheduler(**arguments)):
            torch.testing.assert_close(ours, plain.add_noise(z0, noise, t), rtol=1e-6, atol=1e-6)


WEIGHT = torch.randn(4, 32, generator=torch.Generator().manual_seed(2)) / 3
LABELS = torch.tensor([0, 3, 1])


def classifier(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return z.flatten(1) @ WEIGHT.to(z.dtype).T * (1 + t / 1000).view(-1, 1).to(z.dtype)


def reference(noise: np.ndarray, steps: int, eta: float, guidance: float, clip: float | None) -> np.ndarray:
    """Eq. 7 and 8 as they stand, and the gradient of a linear classifier's log softmax by hand, in float64."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    stride = 1000 // steps
    weight, z = WEIGHT.double().numpy(), noise.astype(np.float64)
    for step, t in enumerate(range(1 + (steps - 1) * stride, 0, -stride)):
        a, before = alpha_bar[t], alpha_bar[max(t - stride, 0)]
        scale = 1 + t / 1000
        logits = z.reshape(len(z), -1) @ weight.T * scale
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = ((weight[LABELS.numpy()] - p @ weight) * scale).reshape(z.shape)
        epsilon = 0.7 * np.tanh(z) + t / 2000 - guidance * np.sqrt(1 - a) * gradient
        z0 = (z - np.sqrt(1 - a) * epsilon) / np.sqrt(a)
        if clip is not None:
            z0 = np.clip(z0, -clip, clip)
            epsilon = (z - np.sqrt(a) * z0) / np.sqrt(1 - a)
        sigma = eta * np.sqrt((1 - before) / (1 - a)) * np.sqrt(1 - a / before)
        z = np.sqrt(before) * z0 + np.sqrt(1 - before - sigma**2) * epsilon
        if eta:
            z = z + sigma * step_noise(step).double().numpy()
    return z


@pytest.mark.parametrize("guidance", [1.0, 10.0])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_with_guidance_it_is_equations_7_and_8(guidance, eta, clip, noise):
    ours = sample_latents(
        denoiser,
        NoiseSchedule(LINEAR),
        SolverConfig(steps=25, eta=eta),
        noise,
        classifier=classifier,
        labels=LABELS,
        guidance=guidance,
        clip_latents=clip,
        step_noise=step_noise,
    )
    expected = reference(noise.numpy(), 25, eta, guidance, clip)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    unguided = reference(noise.numpy(), 25, eta, 0.0, clip)
    assert np.abs(expected - unguided).max() > 0.1


def test_guidance_raises_the_probability_of_the_label(noise):
    def chosen(guidance: float) -> torch.Tensor:
        models = {"classifier": classifier, "labels": LABELS, "guidance": guidance}
        z = sample_latents(denoiser, NoiseSchedule(LINEAR), SolverConfig(steps=10), noise, **models)
        return torch.log_softmax(classifier(z, torch.zeros(3)), 1)[torch.arange(3), LABELS]

    guided, unguided = chosen(3.0), chosen(0.0)
    assert (guided >= unguided).all()
    assert guided.exp().min() > 0.9 > unguided.exp().min()


def test_the_gradient_is_that_of_finite_differences_and_leaves_no_graph():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    net.requires_grad_(False)
    z, t = torch.randn(SHAPE), torch.tensor([5, 50, 500])

    def call(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net(z * (1 + t / 1000).view(-1, 1, 1, 1).to(z.dtype))

    with torch.no_grad():
        gradient = classifier_gradient(call, z, t, LABELS)
    assert not gradient.requires_grad
    net.double()
    step = 1e-6
    for place in [(0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 3, 1)]:
        shifted = [z.double().clone(), z.double().clone()]
        shifted[0][place] += step
        shifted[1][place] -= step
        plus, minus = (torch.log_softmax(call(x, t), 1)[place[0], LABELS[place[0]]] for x in shifted)
        assert float(gradient[place]) == pytest.approx(float((plus - minus) / (2 * step)), rel=1e-4, abs=1e-6)


def restated(prediction: str, config: NoiseScheduleConfig):
    """The ε-model `denoiser`, restated: v and z_0 that follow from its ε."""
    alphas = NoiseSchedule(config).alphas_cumprod.double()

    def model(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = alphas[t].view(-1, 1, 1, 1)
        epsilon = denoiser(z.double(), t)
        z0 = (z.double() - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
        v = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * z0
        return {"epsilon": epsilon, "sample": z0, "v_prediction": v}[prediction]

    return model


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("guidance", [0.0, 5.0])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_model_restated_in_another_parametrisation_gives_the_same_samples(prediction, eta, guidance, clip, noise):
    def samples(prediction: str) -> torch.Tensor:
        return sample_latents(
            restated(prediction, LINEAR),
            NoiseSchedule(LINEAR),
            SolverConfig(steps=20, eta=eta),
            noise.double(),
            prediction=prediction,
            classifier=classifier,
            labels=LABELS,
            guidance=guidance,
            clip_latents=clip,
            step_noise=lambda step: step_noise(step).double(),
        )

    expected, ours = samples("epsilon"), samples(prediction)
    assert ours.dtype == torch.float64
    # The scheduler's coefficients are in fp32: √ᾱ² and √(1−ᾱ)² sum to 1 up to that.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_guidance_moves_the_noise_that_any_output_means_by_the_same_amount(prediction):
    z, output, gradient = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))
    for alpha_bar in (0.9, 0.3, 1e-3):
        root, rest = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

        def epsilon(output: torch.Tensor, root: float = root, rest: float = rest) -> torch.Tensor:
            means = {"epsilon": output, "sample": (z - root * output) / rest, "v_prediction": root * output + rest * z}
            return means[prediction]

        moved = epsilon(guided(prediction, output, gradient, alpha_bar, 3.0)) - epsilon(output)
        torch.testing.assert_close(moved, -3.0 * rest * gradient)


def test_where_z_is_pure_noise_the_classifier_is_not_asked_and_samples_stay_finite(noise):
    asked = []

    def watched(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(int(t[0]))
        return classifier(z, t)

    models = {"classifier": watched, "labels": LABELS, "guidance": 2.0}
    z = sample_latents(denoiser, NoiseSchedule(ZERO), SolverConfig(steps=4), noise, prediction="v_prediction", **models)
    assert asked == [749, 499, 249]
    assert torch.isfinite(z).all()
    assert torch.equal(guided("v_prediction", noise, torch.full_like(noise, torch.nan), 0.0, 2.0), noise)
