"""`hdtrain import CONFIG --out RUN`: a model from diffusers or CompVis as a run directory that other stages accept."""

from hdtrain.config.exchange import ImportConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.errors import WeightsError
from hdtrain.features.weights import read_state
from hdtrain.models import foreign
from hdtrain.models.foreign_space import space_of
from hdtrain.stages.autoencoder import publish_autoencoder
from hdtrain.stages.base import StageContext


def run(config: ImportConfig, context: StageContext) -> None:
    """Read, check, publish kind `autoencoder` or `denoiser`. A single process does it all."""
    if context.world.is_main:
        (_autoencoder if config.part == "autoencoder" else _denoiser)(config, context)


def _autoencoder(config: ImportConfig, context: StageContext) -> None:
    path = config.path
    found = (
        foreign.autoencoder_from_folder(path)
        if path.is_dir()
        else foreign.autoencoder_from_compvis(path, read_state(path))
    )
    scale = config.latent_scale or found.latent_scale or found.usual_scale
    resolution = config.resolution or found.resolution
    silent = [name for name, value in (("latent_scale", scale), ("resolution", resolution)) if value is None]
    if scale is None or resolution is None:
        raise WeightsError(f"{path} does not say its {' and '.join(silent)}; give {' '.join(f'{n}=…' for n in silent)}")
    levels = len(found.vae.config["block_out_channels"])
    if resolution % 2 ** (levels - 1):
        raise WeightsError(
            f"{path}: it halves images {levels - 1} times; resolution={resolution} is no multiple of that"
        )
    found.vae.register_to_config(sample_size=resolution)
    facts = {"preset": "imported", "source": found.source}
    publish_autoencoder(
        found.vae, context, {"latent_scale": scale, "resolution": resolution, "resize": config.resize, **facts}
    )


def _denoiser(config: ImportConfig, context: StageContext) -> None:
    path = config.path
    found = (
        foreign.denoiser_from_folder(path)
        if path.is_dir()
        else foreign.denoiser_from_compvis(path, read_state(path), config.head_channels, config.ema)
    )
    schedule = config.schedule or found.schedule
    if schedule is None:
        raise WeightsError(
            f"{path} holds no scheduler/; give the whole pipeline's folder, or schedule.kind=… and so on"
        )
    prediction = config.prediction or found.prediction or "epsilon"
    space, size = space_of(config, found, context.manifest_of)
    found.unet.register_to_config(sample_size=size)
    found.unet.save_pretrained(context.run.model, safe_serialization=True)
    NoiseSchedule(schedule).ddim(prediction=prediction).save_pretrained(context.run.model / "scheduler")
    parameters = sum(p.numel() for p in found.unet.parameters())
    context.publish(
        kind="denoiser",
        files=sorted(file for file in context.run.model.rglob("*") if file.is_file()),
        info={
            **space,
            "preset": "imported",
            "source": found.source,
            "schedule": schedule.model_dump(),
            "prediction": prediction,
            "parameters": parameters,
        },
    )
    print(f"denoiser: {parameters:,} parameters, {schedule.kind} schedule, predicts {prediction}")
