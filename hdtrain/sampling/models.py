"""The models beside the denoiser, refused where they do not fit it: another space, or another noise schedule."""

from collections.abc import Callable
from pathlib import Path

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
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
from hdtrain.models.classifier import Classifier, load_classifier

ManifestOf = Callable[[Path], Manifest]


def load_decoder(config: SampleConfig, manifest_of: ManifestOf) -> Codec:
    """D′ on this rank's device, or nothing but pixels for a denoiser of pixels.

    Raises:
        ManifestError: it is of another latent space, is missing, or is given where there is none.
    """
    denoiser = manifest_of(config.denoiser)
    if denoiser.info.get("space") == PIXELS:
        if config.decoder is not None:
            raise ManifestError(f"{config.denoiser} was trained on pixels and gives images itself; leave decoder out")
        return PixelCodec(denoiser.info["resolution"])
    ours = manifest_latent_space(denoiser)
    if config.decoder is None:
        raise ManifestError(
            f"{config.denoiser} works in the latent space of encoder {ours['encoder_id'][:12]}; name an autoencoder of "
            "it: decoder=RUN"
        )
    space = manifest_latent_space(manifest_of(config.decoder))
    check_same_latent_space(f"denoiser {config.denoiser}", ours, config.decoder, space)
    return load_autoencoder(config.decoder, device()).codec


def load_guide(config: SampleConfig, manifest_of: ManifestOf) -> Classifier | None:
    """ϕ on this rank's device, if there is to be one.

    Raises:
        ManifestError: it is of another space, was trained under another noise schedule, or is no ϕ.
    """
    if config.classifier is None:
        return None
    manifest, denoiser = manifest_of(config.classifier), manifest_of(config.denoiser)
    if manifest.info["kind"] != "latent":
        raise ManifestError(f"{config.classifier} is a classifier of kind '{manifest.info['kind']}'; guidance needs ϕ")
    if denoiser.info.get("space") == PIXELS:
        raise ManifestError(
            f"{config.denoiser} was trained on pixels; {config.classifier} cannot guide it, being trained on latents; "
            "leave classifier out"
        )
    ours, theirs = manifest_latent_space(manifest), manifest_latent_space(denoiser)
    check_same_latent_space(f"classifier {config.classifier}", ours, config.denoiser, theirs)
    schedules = [NoiseScheduleConfig(**found.info["schedule"]) for found in (manifest, denoiser)]
    if schedules[0] != schedules[1]:
        raise ManifestError(f"{config.classifier} and {config.denoiser} were trained with different noise schedules")
    return load_classifier(config.classifier).to(device())
