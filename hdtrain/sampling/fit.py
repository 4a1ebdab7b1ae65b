"""Do the models of a sampling run fit each other? Read from their manifests, before anything is loaded. No torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdtrain.config.painting import PaintConfig
from hdtrain.config.synthesis import SampleConfig, SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.steps import check_steps
from hdtrain.errors import ManifestError
from hdtrain.formats.embedding_space import check_same_encoder, other_sizes
from hdtrain.formats.latent_space import PIXELS, check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.sampled_cells import num_embeddings
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
    check_embeddings(config, manifest_of)
    config = with_choices(config, manifest_of)
    planned_counts(config, manifest_of)
    schedule = NoiseScheduleConfig(**manifest_of(config.denoiser).info["schedule"])
    check_steps(config.solver.kind, config.solver.steps, schedule.num_train_timesteps, schedule.zero_terminal_snr)


def check_decoder(config: SampleConfig | PaintConfig, manifest_of: ManifestOf) -> None:
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


def check_embeddings(config: SampleConfig, manifest_of: ManifestOf) -> None:
    """Refuse embeddings of another encoder than the denoiser's, none where it needs some, or some where it needs none.

    Raises:
        ManifestError: says which.
    """
    wanted = manifest_of(config.denoiser).info.get("embedding")
    if config.embeddings is None:
        if wanted:
            raise ManifestError(
                f"{config.denoiser} looks at embeddings of {wanted['encoder']['name']}; give embeddings.run=RUN, made "
                "by `hdtrain embed` with the same encoder, or by `hdtrain sample-grids`"
            )
        return
    if not wanted:
        raise ManifestError(
            f"{config.denoiser} looks at no embeddings; train one with embeddings=[RUN], or leave embeddings out"
        )
    run, manifest = config.embeddings.run, manifest_of(config.embeddings.run)
    sampled = manifest.kind == "grids"
    check_same_encoder(str(run), manifest.info, str(config.denoiser), wanted, sampled)
    if config.embeddings.latents is not None and sampled:
        raise ManifestError(
            f"embeddings.strength={config.embeddings.strength:g} begins from the latent of the image that an embedding "
            f"is of, and those of {run} were sampled, of no image; leave strength and latents out"
        )
    if config.embeddings.latents is not None:
        space = manifest_latent_space(manifest_of(config.embeddings.latents))
        ours = manifest_latent_space(manifest_of(config.denoiser))
        check_same_latent_space(f"denoiser {config.denoiser}", ours, config.embeddings.latents, space)
    if config.classifier_free not in (None, 1) and not wanted["dropout"]:
        raise ManifestError(
            f"classifier_free={config.classifier_free:g}: {config.denoiser} was trained with embedding_dropout=0 and "
            "cannot do without the embedding; leave classifier_free out, or train it with embedding_dropout=0.1"
        )


def planned_counts(config: SampleConfig, manifest_of: ManifestOf) -> list[int]:
    """Images of each class, or of each embedding.

    Raises:
        ConfigError: as `counts_of`.
    """
    if config.embeddings is not None:
        number = config.embeddings.num_conditions(num_embeddings(manifest_of(config.embeddings.run)))
        return [config.embeddings.variations] * number
    assert config.per_class is not None, "checked by the config"
    return counts_of(config.per_class, classes_of(config, manifest_of))


def classes_of(config: SampleConfig, manifest_of: ManifestOf) -> list[str] | None:
    """The classes that images are made of: ϕ's, or a class-conditional denoiser's; None where there is neither.

    Raises:
        ManifestError: ϕ and the denoiser know other classes, or `classifier_free` asks for what was not trained.
    """
    denoiser = manifest_of(config.denoiser)
    if config.embeddings is not None:
        return _inherited(config.embeddings.run, manifest_of, denoiser)
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


def _inherited(path: Path, manifest_of: ManifestOf, denoiser: Manifest) -> list[str] | None:
    """The classes of embeddings, of images or of a prior; a denoiser that sees classes too must have the same."""
    classes = manifest_of(path).classes
    if classes and denoiser.classes and classes != denoiser.classes:
        raise ManifestError(
            f"embeddings.run {path} has the classes {', '.join(classes)}, and the denoiser sees "
            f"{', '.join(denoiser.classes)}; both must be the same"
        )
    return classes


def with_choices(config: SampleConfig, manifest_of: ManifestOf) -> SampleConfig:
    """`config` with the g and the solver that sweeps chose, where `guidance_from` and `solver_from` name some."""
    chosen: dict[str, Any] = {}
    if config.guidance_from is not None:
        chosen["guidance"] = float(manifest_of(config.guidance_from).info["choice"])
    if config.solver_from is not None:
        chosen["solver"] = SolverConfig.model_validate(manifest_of(config.solver_from).info["choice"])
    return config.model_copy(update=chosen)


def doubts_of_choices(config: SampleConfig, manifest_of: ManifestOf) -> list[str]:
    """A warning for every sweep whose choice was made for other models or another guidance than this run has, and for
    embeddings of images of another size.

    Args:
        config: as the user gave it.
        manifest_of: the manifest of a parent by its path in `config`.
    """
    doubts = []
    if config.embeddings is not None:
        of, wanted = config.embeddings.run, manifest_of(config.denoiser).info["embedding"]
        doubts += other_sizes(str(of), manifest_of(of).info, str(config.denoiser), wanted)
    for key in ("guidance_from", "solver_from"):
        sweep = getattr(config, key)
        if sweep is None:
            continue
        manifest, others = manifest_of(sweep), []
        for name in ("denoiser", "classifier"):
            ours, theirs = getattr(config, name), manifest.parents.get(name)
            if (manifest_of(ours).identity if ours else None) != (theirs.identity if theirs else None):
                others.append(f"with another {name} ({Path(theirs.path).name if theirs else 'none'})")
        others += [
            f"with {name} {_shown(manifest.info[name])}, where this run has {_shown(value)}"
            for name, value in guidance_of(config, manifest_of).items()
            if name in manifest.info and manifest.info[name] != value
        ]
        if others:
            doubts.append(
                f"{key}: {sweep} was made {' and '.join(others)}: its choice need not be good here; run "
                f"`hdtrain {manifest.stage}` with this run's models and guidance"
            )
    return doubts


def guidance_of(config: SampleConfig, manifest_of: ManifestOf) -> dict[str, float | None]:
    """How strongly images are guided: `guidance` (0 without ϕ), `classifier_free` (None without a condition)."""
    denoiser = manifest_of(config.denoiser)
    conditional = bool(denoiser.classes or denoiser.info.get("embedding"))
    weight = 1.0 if config.classifier_free is None else config.classifier_free
    return {
        "guidance": with_choices(config, manifest_of).guidance if config.classifier else 0.0,
        "classifier_free": weight if conditional else None,
    }


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
