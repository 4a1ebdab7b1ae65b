"""`hdtrain train-vae CONFIG --out RUN`: train the autoencoder, measure its latent scale, publish a diffusers folder."""

from hdtrain.config.training import TrainVaeConfig
from hdtrain.data.images import TrainingImages
from hdtrain.features.perceptual import build_perceptual
from hdtrain.models.autoencoder import build_autoencoder
from hdtrain.models.start import start_from
from hdtrain.stages.autoencoder import publish_autoencoder
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import image_examples, train, training
from hdtrain.training.autoencoder import AutoencoderTask, latent_statistics
from hdtrain.training.fixed_images import FixedImages


def run(config: TrainVaeConfig, context: StageContext) -> None:
    """Run the stage."""
    with training(config, context, config.seed) as plan:
        source = TrainingImages(context.datasets(config.images), config.reader, config.seed)
        vae = start_from(build_autoencoder(config.preset, config.reader.resolution), config.start)
        perceptual = build_perceptual(config.perceptual)
        held_out = source
        if config.validation:
            reader = config.reader.model_copy(update={"weights": None})
            held_out = TrainingImages(context.datasets([config.validation]), reader, config.seed)
        fixed = FixedImages(held_out, config.validation_images)
        task = AutoencoderTask(vae, perceptual, config, plan, image_examples(source), fixed)
        train("train-vae", task, source, config, context, plan, config.seed)
        vae = task.trained()
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
