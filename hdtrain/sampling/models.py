"""The models beside the denoiser, refused where they do not fit it: another space, noise schedule or classes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
Timesteps = Literal["uniform", "zero"]


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


@dataclass(frozen=True)
class Guide:
    """ϕ as the sampler asks it: logits of (z_t, t)."""

    classifier: Classifier
    timesteps: Timesteps = "uniform"
    """As it was trained. `zero`: on clean latents with t = 0, so that is what it is told of z_t too (released code)."""

    @property
    def classes(self) -> list[str]:
        """By label."""
        return self.classifier.classes

    def __call__(self, z_t: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Logits."""
        logits: Tensor = self.classifier(z_t, torch.zeros_like(t) if self.timesteps == "zero" else t)
        return logits


def load_guide(config: SampleConfig, manifest_of: ManifestOf) -> Guide | None:
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
    return Guide(load_classifier(config.classifier).to(device()), manifest.info.get("timesteps", "uniform"))


def classes_of(config: SampleConfig, manifest_of: ManifestOf) -> list[str] | None:
    """The classes that images are made of: ϕ's, or a class-conditional denoiser's; None where there is neither.

    Raises:
        ManifestError: ϕ and the denoiser know other classes, or `classifier_free` asks for what was not trained.
    """
    denoiser = manifest_of(config.denoiser)
    guide = manifest_of(config.classifier).classes if config.classifier else None
    if config.classifier_free is not None:
        if not denoiser.classes:
            raise ManifestError(
                f"classifier_free={config.classifier_free:g}: {config.denoiser} knows no classes; fine-tune it with "
                "class_conditional=true, or leave classifier_free out"
            )
        if config.classifier_free != 1 and not denoiser.info["label_dropout"]:
            raise ManifestError(
                f"classifier_free={config.classifier_free:g}: {config.denoiser} was trained with label_dropout=0 "
                "and cannot do without the class; leave classifier_free out, or train it with label_dropout=0.1"
            )
    if guide and denoiser.classes and guide != denoiser.classes:
        raise ManifestError(
            f"{config.classifier} knows the classes {', '.join(guide)}, and {config.denoiser} is conditional on "
            f"{', '.join(denoiser.classes)}; both must be trained on the same ones"
        )
    return guide or denoiser.classes


def with_guidance(config: SampleConfig, manifest_of: ManifestOf) -> SampleConfig:
    """`config` with the g that a sweep chose, where `guidance_from` names one."""
    if config.guidance_from is None:
        return config
    return config.model_copy(update={"guidance": float(manifest_of(config.guidance_from).info["choice"])})
