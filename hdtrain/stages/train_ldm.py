"""`hdtrain train-ldm CONFIG --out RUN`: train the diffusion model, publish its EMA as a diffusers folder."""

from typing import Any

from hdtrain.config.training import TrainLdmConfig
from hdtrain.models.denoiser import build_denoiser
from hdtrain.models.start import start_from
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import train, training
from hdtrain.training.diffusion import DiffusionTask
from hdtrain.training.diffusion_space import classes_of, describe, embedding_features, open_space


def run(config: TrainLdmConfig, context: StageContext) -> None:
    """Run the stage."""
    info, classes = describe(config, context.manifest_of), classes_of(config, context.manifest_of)
    with training(config, context, config.seed) as plan:
        space = open_space(config, context.manifest_of)
        channels, size, _ = space.codec.latent_shape
        features = embedding_features(info.get("embedding"))
        fresh = build_denoiser(config.preset, channels, size, len(classes) if classes else None, features)
        unet = start_from(fresh, config.start)
        task = DiffusionTask(unet, space, config, plan)
        train("train-ldm", task, space.source, config, context, plan, config.seed)
        published: Any = task.engine.replica("ema")
    if not context.world.is_main:
        return
    published.unet.save_pretrained(context.run.model, safe_serialization=True)
    task.schedule.ddim(prediction=config.prediction).save_pretrained(context.run.model / "scheduler")
    context.publish(
        files=sorted(path for path in context.run.model.rglob("*") if path.is_file()),
        classes=classes,
        info={
            **info,
            "preset": config.preset,
            "schedule": config.schedule.model_dump(),
            "prediction": config.prediction,
            "loss": config.loss,
            "min_snr_gamma": config.min_snr_gamma,
            "ema_decay": config.ema.decay,
            "images_seen": plan.num_steps(config.duration.images) * plan.global_batch_size,
            "parameters": sum(p.numel() for p in published.parameters()),
        },
    )
