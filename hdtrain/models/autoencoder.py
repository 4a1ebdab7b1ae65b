"""The latent autoencoder (LAE): diffusers' AutoencoderKL by preset, and the codecs that carry a latent scale."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.config.presets import AUTOENCODERS
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir

Autoencoder = AutoencoderKL | VQModel
AUTOENCODER_CLASSES: dict[str, type[Autoencoder]] = {model.__name__: model for model in (AutoencoderKL, VQModel)}
"""By the name that diffusers writes into `config.json`. Ours are trained as the first; the second is imported."""


def build_autoencoder(preset: str, resolution: int) -> AutoencoderKL:
    """A fresh autoencoder of one of `AUTOENCODERS`."""
    size = AUTOENCODERS[preset]
    levels = len(size.block_channels)
    return AutoencoderKL(
        block_out_channels=size.block_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=size.layers_per_block,
        latent_channels=size.latent_channels,
        norm_num_groups=size.norm_groups,
        mid_block_add_attention=size.mid_attention,
        sample_size=resolution,
        scaling_factor=1.0,
    )


def to_unit_range(images: Tensor) -> Float[Tensor, "n 3 h w"]:
    """uint8 NHWC 0..255 to float32 NCHW in [−1, 1]: x/127.5 − 1."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def to_uint8(images: Float[Tensor, "n 3 h w"]) -> Tensor:
    """[−1, 1] NCHW to uint8 NHWC: the one rounding rule, clamp((x + 1) · 127.5) to nearest."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class LatentCodec(nn.Module):
    """Pixels ↔ scaled latents z0 = s·E(x), with s stored beside the weights."""

    def __init__(self, vae: Autoencoder, scale: float):
        super().__init__()
        self.vae, self.scale = vae, scale

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return int(self.vae.config["sample_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self._channels, self.resolution // factor, self.resolution // factor

    @property
    def _channels(self) -> int:
        return int(self.vae.config["latent_channels"])

    def moments(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """Posterior mean and std, unscaled; logvar clamped to [−30, 20]."""
        posterior = self.vae.encode(x).latent_dist
        return posterior.mean, posterior.std

    def latent(self, mean: Tensor, std: Tensor, noise: Tensor) -> Float[Tensor, "n c h w"]:
        """z0 = s·(μ + σ·ε)."""
        return (mean + std * noise) * self.scale

    def decoder_input(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """What the decoder is given for an unscaled latent: z itself."""
        return z

    def decode(self, z0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
        """x̂ = D(z0 / s)."""
        vae: Any = self.vae
        decoded: Tensor = vae.decoder(vae.post_quant_conv(self.decoder_input(z0 / self.scale)))
        return decoded


class QuantisedCodec(LatentCodec):
    """Of a VQModel: z is the encoder's output before quantisation, and the decoder is given the nearest codes.

    Source: Rombach et al. 2022, section 3.1 and appendix D.1 (VQ-regularised latents; LDM's VQModelInterface).
    """

    vae: VQModel

    @property
    def _channels(self) -> int:
        return int(self.vae.quantize.embedding.embedding_dim)

    def moments(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """The latent, unscaled, and a std of 0: nothing is drawn."""
        z: Tensor = self.vae.encode(x).latents
        return z, torch.zeros_like(z)

    def decoder_input(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The nearest code (L2) of every position.

        One image at a time: distances to all codes are h·w·K numbers an image (128 MiB for VQ-f4 at 256 px), and at a
        near tie the choice must not depend on what else is in the batch.
        """
        return torch.cat([self.vae.quantize(each)[0] for each in z.split(1)])


def make_codec(vae: Autoencoder, scale: float) -> LatentCodec:
    """The codec of an autoencoder, by its class."""
    return (QuantisedCodec if isinstance(vae, VQModel) else LatentCodec)(vae, scale)


class PixelCodec:
    """In the place of `LatentCodec` where there is no autoencoder: z0 is the image itself, in [−1, 1].

    Args:
        resolution: pixels a side.
    """

    scale = 1.0

    def __init__(self, resolution: int):
        self.resolution = resolution

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the denoiser sees."""
        return 3, self.resolution, self.resolution

    def decode(self, z0: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """x̂ = z0, within [−1, 1]."""
        return z0.clamp(-1.0, 1.0)


Codec = LatentCodec | PixelCodec


@dataclass(frozen=True)
class PublishedAutoencoder:
    """A published autoencoder: its codec, frozen, and what the manifest says of its latent space."""

    codec: LatentCodec
    info: dict[str, Any]

    @property
    def encoder_id(self) -> str:
        """Hash of the encoder's weights: latents and models of one latent space share it."""
        return str(self.info["encoder_id"])


def load_autoencoder(directory: Path, device: torch.device | None = None) -> PublishedAutoencoder:
    """Load a published autoencoder (plain or adapted), frozen, in eval mode."""
    manifest = read_manifest(directory, ("autoencoder",))
    check_files(directory, manifest)
    model: Any = _class_of(directory)
    vae = model.from_pretrained(RunDir(directory).model, local_files_only=True, low_cpu_mem_usage=False)
    vae.requires_grad_(False).eval()
    codec = make_codec(vae, float(manifest.info["latent_scale"])).to(device or torch.device("cpu"))
    return PublishedAutoencoder(codec, manifest.info)


def published_architecture(directory: Path) -> Autoencoder:
    """A published autoencoder's class and sizes, with fresh weights."""
    model: Any = _class_of(directory)
    vae: Autoencoder = model.from_config(model.load_config(RunDir(directory).model, local_files_only=True))
    return vae


def _class_of(directory: Path) -> type[Autoencoder]:
    config = AutoencoderKL.load_config(RunDir(directory).model, local_files_only=True)
    return AUTOENCODER_CLASSES[config["_class_name"]]


def encoder_id(vae: Autoencoder) -> str:
    """sha256 over the encoder's weights, in name order; those of codes and decoder are not of the latent space."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
