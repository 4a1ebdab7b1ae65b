"""`hdtrain train-ldm CONFIG --out RUN`: train the latent diffusion model, publish its EMA as a diffusers folder."""

import torch

from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.latents import TrainingLatents
from hdtrain.distributed.collectives import device
from hdtrain.models.autoencoder import check_same_latent_space, load_autoencoder, manifest_latent_space
from hdtrain.models.denoiser import build_denoiser
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import train, training
from hdtrain.training.diffusion import DiffusionTask


def run(config: TrainLdmConfig, context: StageContext) -> None:
    """Run the stage."""
    latents = context.manifest_of(config.latents)
    space = manifest_latent_space(latents)
    vae_manifest = context.manifest_of(config.vae)
    check_same_latent_space(f"latents {config.latents}", space, config.vae, manifest_latent_space(vae_manifest))
    with training(config, context, config.seed) as plan:
        source = TrainingLatents([(config.latents, latents)], config.seed)
        codec = load_autoencoder(config.vae, device()).codec
        unet = build_denoiser(config.preset, codec.latent_shape[0], codec.latent_shape[1])
        task = DiffusionTask(unet, codec, config, plan)
        train("train-ldm", task, source, config, context, plan, config.seed)
    if not context.world.is_main:
        return
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            parameter.copy_(task.ema.shadow[name])
    unet.save_pretrained(context.run.model, safe_serialization=True)
    task.schedule.ddim().save_pretrained(context.run.model / "scheduler")
    files = sorted(path for path in context.run.model.rglob("*") if path.is_file())
    context.publish(
        files=files,
        info={
            **space,
            "preset": config.preset,
            "schedule": config.schedule.model_dump(),
            "prediction": "epsilon",
            "loss": config.loss,
            "ema_decay": config.ema.decay,
            "images_seen": plan.num_steps(config.duration.images) * plan.global_batch_size,
            "parameters": sum(p.numel() for p in unet.parameters()),
        },
    )
