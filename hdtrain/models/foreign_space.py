"""The space that an imported denoiser works in: the latents of an autoencoder of ours, pixels, or one unknown."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdtrain.config.exchange import ImportConfig
from hdtrain.errors import ManifestError, WeightsError
from hdtrain.formats.latent_space import PIXELS, check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest
from hdtrain.models.autoencoder import encoder_id, load_autoencoder
from hdtrain.models.foreign import ForeignDenoiser, square

UNKNOWN = "unknown"
"""In place of an encoder's hash: no autoencoder has it, so only training that starts from the weights takes them."""


def space_of(
    config: ImportConfig, found: ForeignDenoiser, manifest_of: Callable[[Path], Manifest]
) -> tuple[dict[str, Any], int | None]:
    """What the manifest says of the denoiser's space, and the height and width of its input.

    Raises:
        WeightsError: it predicts a variance too, or its input's size is not known.
        ManifestError: it was trained with another autoencoder.
    """
    channels, outputs = found.unet.config["in_channels"], found.unet.config["out_channels"]
    if channels != outputs:
        raise WeightsError(
            f"{config.path}: its denoiser takes {channels} channels and gives {outputs}; hdtrain's give what they take "
            "(one that predicts variances too cannot be imported)"
        )
    size = square(found.unet.config["sample_size"])
    if config.space == "unknown":
        return {"space": "latents", "encoder_id": UNKNOWN, "latent_scale": found.latent_scale}, size
    if config.space == "pixels":
        resolution = config.resolution or size
        if resolution is None:
            raise WeightsError(f"{config.path} does not say its resolution; give resolution=…")
        if found.vae or found.other_vae or channels != 3:
            raise ManifestError(f"{config.path}: its denoiser works on latents of {channels} channels, not on pixels")
        return {"space": PIXELS, "resolution": resolution, "resize": config.resize}, resolution
    assert config.vae is not None
    return _latent_space(config.path, config.vae, found, manifest_of)


def _latent_space(
    path: Path, vae: Path, found: ForeignDenoiser, manifest_of: Callable[[Path], Manifest]
) -> tuple[dict[str, Any], int]:
    space = manifest_latent_space(manifest_of(vae))
    if found.other_vae:
        raise ManifestError(
            f"{path}: its denoiser was trained with a {found.other_vae}, which {vae} is not; space=unknown makes it a "
            "start for train-ldm"
        )
    shape = load_autoencoder(vae).codec.latent_shape
    channels, size = found.unet.config["in_channels"], square(found.unet.config["sample_size"]) or shape[1]
    if (channels, size) != shape[:2]:
        raise ManifestError(
            f"{path}: its denoiser takes {channels} channels of {size}×{size}, the latents of {vae} are {shape[0]} of "
            f"{shape[1]}×{shape[2]}; name the autoencoder that it was trained with, imported at that resolution"
        )
    ours = dict(space)
    if found.vae:
        ours["encoder_id"] = encoder_id(found.vae)
    if found.latent_scale and not math.isclose(found.latent_scale, space["latent_scale"], rel_tol=1e-6):
        ours["latent_scale"] = found.latent_scale
    check_same_latent_space(f"the denoiser of {path}", ours, vae, space)
    return {"space": "latents", **space}, size
