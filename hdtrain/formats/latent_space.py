"""Which latent space an artefact belongs to: read from manifests, so no torch."""

from pathlib import Path
from typing import Any

from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest

PIXELS = "pixels"
"""`info.space` of a denoiser that was trained on images themselves."""


def check_same_latent_space(what: str, ours: dict[str, Any], vae: Path, theirs: dict[str, Any]) -> None:
    """Refuse to mix latents, models and autoencoders of different latent spaces.

    Raises:
        ManifestError: the encoder's hash or the latent scale differs; both are named.
    """
    if ours["encoder_id"] != theirs["encoder_id"]:
        raise ManifestError(
            f"{what} belongs to the autoencoder with encoder {str(ours['encoder_id'])[:12]}, but {vae} has encoder "
            f"{str(theirs['encoder_id'])[:12]}: the VAE does not match the latents; "
            f"make it again with {vae}, or name the VAE it was made with"
        )
    if ours["latent_scale"] != theirs["latent_scale"]:
        raise ManifestError(
            f"{what} was made with latent scale {ours['latent_scale']:.6g}, "
            f"but {vae} has {theirs['latent_scale']:.6g}; name the VAE that it was made with"
        )


def manifest_latent_space(manifest: Manifest) -> dict[str, Any]:
    """The two facts that identify a latent space."""
    return {"encoder_id": manifest.info["encoder_id"], "latent_scale": manifest.info["latent_scale"]}
