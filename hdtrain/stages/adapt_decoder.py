"""`hdtrain adapt-decoder CONFIG --out RUN`: fine-tune the decoder on the labelled set; D′ keeps E unchanged."""

from hdtrain.config.adaptation import AdaptDecoderConfig
from hdtrain.data.images import TrainingImages
from hdtrain.distributed.collectives import device
from hdtrain.features.perceptual import build_perceptual
from hdtrain.models.autoencoder import load_autoencoder
from hdtrain.models.classifier import load_classifier
from hdtrain.stages.autoencoder import publish_autoencoder
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import image_examples, train, training
from hdtrain.training.checks import check_decoder
from hdtrain.training.decoder import DecoderTask


def run(config: AdaptDecoderConfig, context: StageContext) -> None:
    """Run the stage."""
    datasets = context.datasets(config.images)
    classes, classifier = check_decoder(config, context.manifest_of), load_classifier(config.classifier)
    with training(config, context, config.seed) as plan:
        published = load_autoencoder(config.vae, device())
        perceptual = build_perceptual(config.perceptual)
        source = TrainingImages(datasets, config.reader, config.seed)
        task = DecoderTask(published.codec, classifier, perceptual, config, plan, image_examples(source))
        train("adapt-decoder", task, source, config, context, plan, config.seed)
        vae = load_autoencoder(config.vae).codec.vae
        task.adapt(vae)
    if context.world.is_main:
        info = {key: value for key, value in published.info.items() if key not in ("encoder_id", "images_seen")}
        publish_autoencoder(
            vae, context, {**info, "adapted_to": classes, "classifier_weight": config.classifier_weight}
        )
