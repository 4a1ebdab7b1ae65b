"""Where diffusion happens, a latent space or pixels: what is read for it, and what the manifest says of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.distributed.collectives import device
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.models.autoencoder import (
    PIXELS,
    Codec,
    PixelCodec,
    check_same_latent_space,
    load_autoencoder,
    manifest_latent_space,
)
from hdtrain.training.fixed_noise import Source

ManifestOf = Callable[[Path], Manifest]


@dataclass(frozen=True)
class DiffusionSpace:
    """Training and validation samples, and the codec of their space."""

    source: Source
    validation: Source | None
    codec: Codec


def describe(config: TrainLdmConfig, manifest_of: ManifestOf) -> dict[str, Any]:
    """What the denoiser's manifest says of its space.

    Raises:
        ManifestError: latents, validation set and autoencoder are not of one space.
    """
    expected = "latents" if config.latents else "images"
    if config.validation and (kind := manifest_of(config.validation).kind) != expected:
        raise ManifestError(f"validation {config.validation} is of kind '{kind}', but training is on {expected}")
    if config.vae is None:
        return {"space": PIXELS, "resolution": config.reader.resolution, "resize": config.reader.resize}
    space = manifest_latent_space(manifest_of(config.vae))
    for path in filter(None, (config.latents, config.validation)):
        check_same_latent_space(f"latents {path}", manifest_latent_space(manifest_of(path)), config.vae, space)
    return {"space": "latents", **space}


def open_space(config: TrainLdmConfig, manifest_of: ManifestOf) -> DiffusionSpace:
    """Open what `config` names, its codec on this rank's device."""
    held_out = [(path, manifest_of(path)) for path in filter(None, [config.validation])]
    if config.latents and config.vae:
        return DiffusionSpace(
            TrainingLatents([(config.latents, manifest_of(config.latents))], config.seed),
            TrainingLatents(held_out, config.seed) if held_out else None,
            load_autoencoder(config.vae, device()).codec,
        )
    datasets, plain = [(path, manifest_of(path)) for path in config.images], {"weights": None}
    return DiffusionSpace(
        TrainingImages(datasets, config.reader, config.seed),
        TrainingImages(held_out, config.reader.model_copy(update=plain), config.seed) if held_out else None,
        PixelCodec(config.reader.resolution),
    )
