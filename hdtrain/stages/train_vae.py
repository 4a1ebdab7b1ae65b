"""`hdtrain train-vae CONFIG --out RUN`: train the autoencoder, measure its latent scale, publish a diffusers folder."""

import hashlib

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from hdtrain.config.training import TrainVaeConfig
from hdtrain.data.images import TrainingImages
from hdtrain.features.perceptual import build_perceptual
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import datasets_of, image_examples, train, training
from hdtrain.training.autoencoder import AutoencoderTask, latent_statistics


def run(config: TrainVaeConfig, context: StageContext) -> None:
    """Run the stage."""
    with training(config, context, config.seed) as plan:
        source = TrainingImages(datasets_of(context, config.images), config.reader, config.seed)
        vae = build_autoencoder(config.preset, config.reader.resolution)
        perceptual = build_perceptual(config.perceptual)
        task = AutoencoderTask(vae, perceptual, config, plan, image_examples(source))
        train("train-vae", task, source, config, context, plan, config.seed)
        statistics = latent_statistics(vae, source, config.latent_stats_images, context.world, config.seed)
    if context.world.is_main:
        publish_autoencoder(
            vae,
            context,
            {
                **statistics,
                "preset": config.preset,
                "resolution": config.reader.resolution,
                "perceptual": perceptual.name if perceptual else "none",
                "images_seen": plan.num_steps(config.duration.images) * plan.global_batch_size,
            },
        )


def publish_autoencoder(vae: AutoencoderKL, context: StageContext, info: dict) -> None:
    """Write the diffusers folder, then the manifest; `encoder_id` names the latent space."""
    folder = RunDir(context.run.path).model
    vae.float().register_to_config(scaling_factor=info["latent_scale"])
    vae.save_pretrained(folder, safe_serialization=True)
    info = {"encoder_id": encoder_id(vae), **info}
    context.publish(kind="autoencoder", files=sorted(folder.iterdir()), info=info)
    print(f"autoencoder: latent scale {info['latent_scale']:.4f}, encoder {info['encoder_id'][:12]}")


def encoder_id(vae: AutoencoderKL) -> str:
    """sha256 over the encoder's weights, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
