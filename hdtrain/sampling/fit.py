"""Do the models of a sampling run fit each other? Read from their manifests, before anything is loaded. No torch."""

from collections.abc import Callable
from pathlib import Path

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.steps import check_steps
from hdtrain.errors import ManifestError
from hdtrain.formats.latent_space import PIXELS, check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest
from hdtrain.sampling.plan import counts_of

ManifestOf = Callable[[Path], Manifest]


def check(config: SampleConfig, manifest_of: ManifestOf) -> None:
    """Everything that can be known before the run.

    Raises:
        ManifestError: the models do not fit each other, or what is asked of them.
        ConfigError: the solver's steps do not fit the schedule.
    """
    check_decoder(config, manifest_of)
    check_guide(config, manifest_of)
    counts_of(config.per_class, classes_of(config, manifest_of))
    schedule = NoiseScheduleConfig(**manifest_of(config.denoiser).info["schedule"])
    check_steps(config.solver.kind, config.solver.steps, schedule.num_train_timesteps, schedule.zero_terminal_snr)


def check_decoder(config: SampleConfig, manifest_of: ManifestOf) -> None:
    """Refuse a decoder of another latent space, none where one is needed, or one where there are no latents.

    Raises:
        ManifestError: says which.
    """
    denoiser = manifest_of(config.denoiser)
    if denoiser.info.get("space") == PIXELS:
        if config.decoder is not None:
            raise ManifestError(f"{config.denoiser} was trained on pixels and gives images itself; leave decoder out")
        return
    ours = manifest_latent_space(denoiser)
    if config.decoder is None:
        raise ManifestError(
            f"{config.denoiser} works in the latent space of encoder {ours['encoder_id'][:12]}; name an autoencoder of "
            "it: decoder=RUN"
        )
    space = manifest_latent_space(manifest_of(config.decoder))
    check_same_latent_space(f"denoiser {config.denoiser}", ours, config.decoder, space)


def check_guide(config: SampleConfig, manifest_of: ManifestOf) -> None:
    """Refuse a ϕ of another space or noise schedule, or a classifier that is none.

    Raises:
        ManifestError: says which.
    """
    if config.classifier is None:
        return
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
