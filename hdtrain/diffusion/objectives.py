"""What a denoiser predicts, and how much each timestep's error weighs. Pure functions.

With z_t = √ᾱ z_0 + √(1−ᾱ) ε, a denoiser's output is ε, z_0, or v = √ᾱ ε − √(1−ᾱ) z_0 (Salimans & Ho 2022).
SNR = ᾱ/(1−ᾱ). Every function takes ᾱ of each sample's own timestep.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from hdtrain.config.training import Prediction


def target(
    prediction: Prediction,
    z0: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    alpha_bar: Float[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """What the output at z_t is compared with."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return z0
    alpha = alpha_bar.view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * z0


def predicted_z0(
    prediction: Prediction, output: Float[Tensor, "n c h w"], z_t: Float[Tensor, "n c h w"], alpha_bar: float
) -> Float[Tensor, "n c h w"]:
    """ẑ_0 that an output at z_t means: the output itself, √ᾱ z_t − √(1−ᾱ) v̂, or (z_t − √(1−ᾱ) ε̂)/√ᾱ.

    Of ε̂ at ᾱ = 0 there is none: a denoiser under zero terminal SNR predicts v or z_0.
    """
    if prediction == "sample":
        return output
    if prediction == "v_prediction":
        return alpha_bar**0.5 * z_t - (1 - alpha_bar) ** 0.5 * output
    return (z_t - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5


def errors(
    loss: Literal["mse", "l1"], output: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """Mean squared or absolute error of every sample."""
    difference = output.float() - wanted.float()
    return (difference.square() if loss == "mse" else difference.abs()).mean(dim=(1, 2, 3))


def min_snr_weights(prediction: Prediction, alpha_bar: Float[Tensor, " n"], gamma: float) -> Float[Tensor, " n"]:
    """min(SNR, γ) as a weight of ‖ẑ_0 − z_0‖², in terms of the output's own error (Hang et al. 2023, eq. 8).

    z_0: min(SNR, γ); ε: min(SNR, γ)/SNR; v: min(SNR, γ)/(SNR + 1).
    """
    snr = alpha_bar / (1 - alpha_bar)
    clamped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return clamped / snr
    return clamped if prediction == "sample" else clamped / (snr + 1)
