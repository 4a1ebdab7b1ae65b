"""Targets and weights of the loss, against diffusers and against the papers' formulae written out."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.objectives import errors, min_snr_weights, target
from hdtrain.diffusion.schedule import NoiseSchedule

SHAPE = (4, 3, 4, 4)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_target_of_v_is_the_velocity_of_diffusers(zero_terminal_snr):
    schedule = NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=zero_terminal_snr))
    z0, noise, t = normal(0), normal(1), torch.tensor([0, 10, 500, 999])
    plain = DDPMScheduler(beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=zero_terminal_snr)
    ours = target("v_prediction", z0, noise, schedule.alpha_bar(t))
    torch.testing.assert_close(ours, plain.get_velocity(z0, noise, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_model_that_hits_the_target_gives_the_clean_sample_back_in_one_step(prediction):
    """diffusers' own reading of the output is the judge."""
    schedule = NoiseSchedule(NoiseScheduleConfig())
    z0, noise, timestep = normal(0), normal(1), 700
    t = torch.full((4,), timestep)
    output = target(prediction, z0, noise, schedule.alpha_bar(t))
    plain = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, prediction_type=prediction)
    plain.set_timesteps(10)
    found = plain.step(output, timestep, schedule.add_noise(z0, noise, t)).pred_original_sample
    torch.testing.assert_close(found, z0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_those_of_the_paper(prediction, gamma):
    """Hang et al. 2023: min(SNR, γ) for z_0, over SNR for ε, over SNR + 1 for v; here in float64 from the β."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alpha_bar / (1 - alpha_bar)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones(1000)}[prediction]
    expected = np.array([min(value, gamma) for value in snr]) / divisor
    ours = min_snr_weights(prediction, NoiseSchedule(NoiseScheduleConfig()).alphas_cumprod, gamma)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-3)  # 1 − ᾱ in fp32 at t = 0
    np.testing.assert_allclose(ours.numpy()[50:], expected[50:], rtol=5e-5)


def test_the_weighted_loss_is_the_same_whatever_the_model_predicts():
    """A model that is wrong by as much in ẑ_0 has the same loss in all three parametrisations, at every timestep."""
    alpha_bar = NoiseSchedule(NoiseScheduleConfig()).alphas_cumprod.double()[[20, 300, 700, 950]]
    z0, noise, wrong = normal(0).double(), normal(1).double(), 0.1 * normal(2).double()
    alpha = alpha_bar.view(-1, 1, 1, 1)
    z_t = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
    found = (z_t - alpha.sqrt() * (z0 + wrong)) / (1 - alpha).sqrt()
    outputs = {
        "epsilon": found,
        "sample": z0 + wrong,
        "v_prediction": alpha.sqrt() * found - (1 - alpha).sqrt() * (z0 + wrong),
    }
    losses = [
        min_snr_weights(name, alpha_bar, 5.0)
        * (output - target(name, z0, noise, alpha_bar)).square().mean(dim=(1, 2, 3))
        for name, output in outputs.items()
    ]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_errors_are_means_over_each_sample():
    output, wanted = normal(0), normal(1)
    for loss, rule in (("mse", np.square), ("l1", np.abs)):
        expected = [rule(a - b).mean() for a, b in zip(output.numpy(), wanted.numpy(), strict=True)]
        np.testing.assert_allclose(errors(loss, output, wanted).numpy(), expected, rtol=1e-5)


def test_zero_terminal_snr_ends_in_pure_noise_and_begins_as_before():
    plain, rescaled = (NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=value)) for value in (False, True))
    z0, noise = normal(0), normal(1)
    last = torch.full((4,), 999)
    assert torch.equal(rescaled.add_noise(z0, noise, last), noise)
    assert not torch.equal(plain.add_noise(z0, noise, last), noise)
    assert rescaled.alphas_cumprod[0] == pytest.approx(float(plain.alphas_cumprod[0]), rel=1e-6)
    # Lin et al. 2023, algorithm 1, in float64.
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(rescaled.alphas_cumprod.numpy(), expected, rtol=1e-4, atol=1e-7)
