"""`hdtrain train-vae CONFIG --out RUN`: train the autoencoder, measure its latent scale, publish a diffusers folder."""

from hdtrain.config.training import TrainVaeConfig
from hdtrain.data.images import TrainingImages
from hdtrain.features.perceptual import build_perceptual
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import datasets_of, image_examples, publish_autoencoder, train, training
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
                "resize": config.reader.resize,
                "perceptual": perceptual.name if perceptual else "none",
                "images_seen": plan.num_steps(config.duration.images) * plan.global_batch_size,
            },
        )
