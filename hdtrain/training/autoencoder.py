"""Training the autoencoder: L1 + perceptual + adversarial + KL, generator and discriminator in two engines."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from hdtrain.config.batch import BatchPlan
from hdtrain.config.presets import DISCRIMINATOR_CHANNELS
from hdtrain.config.training import TrainVaeConfig
from hdtrain.data.images import ImageBatch
from hdtrain.distributed.collectives import all_reduce_mean, all_reduce_sum, device
from hdtrain.distributed.seeds import Draws, generator
from hdtrain.distributed.transfer import to_device
from hdtrain.features.perceptual import Perceptual
from hdtrain.models.autoencoder import to_uint8, to_unit_range
from hdtrain.models.discriminator import PatchDiscriminator
from hdtrain.training.augment import random_symmetry
from hdtrain.training.engine import Engine
from hdtrain.training.fixed_images import FixedImages
from hdtrain.training.metrics import image_grid
from hdtrain.training.task import Task

MAX_ADVERSARIAL_WEIGHT = 1e4


class ReconstructingVae(nn.Module):
    """E and D in one forward pass, so that one engine trains both."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae, self._last_shape = vae, vae.decoder.conv_out.weight.shape

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x in [−1, 1] and posterior noise to (x̂, μ, log σ²), z = μ + σ·ε."""
        posterior = self.vae.encode(x).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.mean, posterior.logvar


def kl_mean(mean: Tensor, logvar: Tensor) -> Float[Tensor, ""]:
    """½ mean(μ² + σ² − 1 − log σ²)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """½[mean relu(1 − Disc(x)) + mean relu(1 + Disc(x̂))]."""
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())


def adaptive_weight(gradients: tuple[Tensor, Tensor], features: Tensor, shape: Sequence[int]) -> Float[Tensor, ""]:
    """clip(‖∂rec/∂W‖ / (‖∂G/∂W‖ + 1e-4), 0, 1e4), Esser et al. 2021, eq. 7; W is the decoder's last convolution.

    Both gradients are means over all ranks before their norms are taken: what one rank with the whole batch would get.

    Args:
        gradients: ∂rec/∂x̂ and ∂G/∂x̂.
        features: what the last convolution (3×3, padding 1) was given.
        shape: W's.
    """
    of_weight = [conv2d_weight(features.float(), list(shape), gradient, padding=1) for gradient in gradients]
    rec_norm, generator_norm = all_reduce_mean(torch.stack(of_weight)).square().sum(dim=(1, 2, 3, 4)).sqrt()
    return (rec_norm / (generator_norm + 1e-4)).clamp(0, MAX_ADVERSARIAL_WEIGHT)


class AutoencoderTask(Task):
    """Two engines, each its own optimizer; the discriminator is frozen while the generator's gradients are made."""

    def __init__(
        self,
        vae: AutoencoderKL,
        perceptual: Perceptual | None,
        config: TrainVaeConfig,
        plan: BatchPlan,
        examples: ImageBatch,
        fixed: FixedImages | None = None,
    ):
        self.config, self.fixed = config, fixed
        self.perceptual = perceptual.to(device()) if perceptual else None
        self.vae, self._last_shape = vae, vae.decoder.conv_out.weight.shape
        self.generator = Engine("autoencoder", ReconstructingVae(vae), config.optim, plan, config.engine)
        self.engines: dict[str, Engine] = {"autoencoder": self.generator}
        self.adversarial = config.adversarial
        if self.adversarial.weight > 0:
            self.discriminator = PatchDiscriminator(DISCRIMINATOR_CHANNELS[config.preset])
            optim = config.optim.model_copy(update={"lr": self.adversarial.lr or config.optim.lr})
            self.engines["discriminator"] = Engine("discriminator", self.discriminator, optim, plan, config.engine)
        self.examples = to_unit_range(to_device(examples.images))
        self._latent_shape = self._shape_of_latent()
        self._features = torch.empty(0)
        vae.decoder.conv_out.register_forward_pre_hook(self._keep_features)

    def _keep_features(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """What W is given, for the adaptive weight."""
        self._features = inputs[0].detach()

    def _shape_of_latent(self) -> tuple[int, ...]:
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        size = self.examples.shape[-1] // factor
        return int(self.vae.config["latent_channels"]), size, size

    def micro_step(self, batch: ImageBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """Generator, then discriminator on the same reconstruction.

        The gradient of every loss on x̂ is taken at x̂ and sent through the autoencoder in one backward pass: the graph
        that DeepSpeed watches is walked once, and the discriminator's parameters see nothing of the generator's loss
        (under ZeRO-1 with accumulation that is silently wrong otherwise, DeepSpeed #4923).
        """
        x = to_unit_range(to_device(batch.images))
        if self.config.reader.flips:
            x = random_symmetry(x, draws)
        decoded, mean, logvar = self.generator(x, draws.normal("posterior", self._latent_shape))
        x_hat = decoded.detach().float().requires_grad_(True)
        rec, logs = self._reconstruction(x, x_hat)
        gradient = torch.autograd.grad(rec, x_hat)[0]
        total = rec.detach()
        adversarial_now = self.adversarial.weight > 0 and images_seen >= self.adversarial.start_images
        if adversarial_now:
            generator_loss = -self.discriminator(self.generator.cast(x_hat)).float().mean()
            generator_gradient = torch.autograd.grad(generator_loss, x_hat)[0]
            adaptive = adaptive_weight((gradient, generator_gradient), self._features, self._last_shape)
            gradient = gradient + self.adversarial.weight * adaptive * generator_gradient
            total = total + self.adversarial.weight * adaptive * generator_loss.detach()
            logs |= {"loss/generator": generator_loss, "loss/adversarial_weight": adaptive}
        kl = kl_mean(mean.float(), logvar.float())
        self.generator.backward((decoded.float() * gradient).sum() + self.config.kl_weight * kl)
        if adversarial_now:
            logs |= self._discriminator_pass(x, x_hat.detach())
        latent_std = (mean.var() + logvar.exp().mean()).sqrt()
        return {
            "loss/reconstruction": rec,
            "loss/total": total + self.config.kl_weight * kl.detach(),
            **logs,
            "loss/kl": kl,
            "latent/std": latent_std,
        }

    def _reconstruction(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        l1 = (x - x_hat).abs().mean()
        if self.perceptual is None:
            return l1, {"loss/l1": l1}
        distance = self.perceptual(x, x_hat)
        return l1 + self.config.perceptual_weight * distance, {"loss/l1": l1, f"loss/{self.perceptual.name}": distance}

    def _discriminator_pass(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        real, fake = self.engines["discriminator"](torch.cat([x, x_hat])).float().chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self.engines["discriminator"].backward(loss)
        return {"loss/discriminator": loss, "logits/real": real.mean(), "logits/fake": fake.mean()}

    def trained(self) -> AutoencoderKL:
        """The autoencoder as it is now, in fp32 and without DeepSpeed. A collective."""
        return cast(ReconstructingVae, self.generator.replica()).vae

    def validate(self) -> dict[str, float]:
        """Reconstruction loss and PSNR on fixed images."""
        if self.fixed is None:
            return {}
        prefix = "validation" if self.config.validation else "fixed_images"
        return self.fixed.figures(self.trained(), self.perceptual, self.config.perceptual_weight, prefix)

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """Fixed images above their reconstructions (posterior mean), and decoded noise."""
        vae = self.trained()
        reconstructed = vae.decode(vae.encode(self.examples).latent_dist.mean).sample
        both = torch.cat([to_uint8(self.examples), to_uint8(reconstructed)]).cpu().numpy()
        return {"reconstructions": image_grid(both, columns=len(self.examples))}


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, source: Any, num_images: int, world: Any, seed: int) -> dict[str, Any]:
    """Scale s = 1/std(z) and per-channel mean and std of z = μ + σ·ε over `num_images` images, shared out over ranks.

    Sums are in fp64 and in chunks of fixed size, so the figures do not depend on how the work was shared beyond 1e-12.
    """
    chunk, channels = 16, int(vae.config["latent_channels"])
    num_images = min(num_images, source.order.epoch_size)
    sums = torch.zeros(2, channels, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.float64)
    for first in world.share(range(0, num_images, chunk)):
        batch = source.batch(range(first, min(first + chunk, num_images)))
        posterior = vae.encode(to_unit_range(to_device(batch.images))).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(seed, "latent-statistics", first))
        z = (posterior.mean + posterior.std * noise.to(posterior.mean.device)).double().cpu()
        sums += torch.stack([z.sum(dim=(0, 2, 3)), z.square().sum(dim=(0, 2, 3))])
        count += z.numel() / channels
    sums, count = all_reduce_sum(sums), all_reduce_sum(count)
    mean, second = sums / count
    std = (second - mean.square()).sqrt()
    overall_mean, overall_second = mean.mean(), second.mean()
    overall_std = (overall_second - overall_mean.square()).sqrt()
    return {
        "latent_scale": float(1 / overall_std),
        "latent_mean": mean.tolist(),
        "latent_std": std.tolist(),
        "latent_stats_images": num_images,
    }
