"""`hdtrain adapt-decoder CONFIG --out RUN`: fine-tune the decoder on the labelled set; D′ keeps E unchanged."""

from hdtrain.config.training import AdaptDecoderConfig
from hdtrain.data.images import TrainingImages, labelled_classes
from hdtrain.distributed.collectives import device
from hdtrain.errors import ManifestError
from hdtrain.features.perceptual import build_perceptual
from hdtrain.models.autoencoder import load_autoencoder
from hdtrain.models.classifier import load_classifier
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import datasets_of, image_examples, publish_autoencoder, train, training
from hdtrain.training.decoder import DecoderTask


def run(config: AdaptDecoderConfig, context: StageContext) -> None:
    """Run the stage."""
    datasets = datasets_of(context, config.images)
    classes = labelled_classes(datasets)
    classifier = load_classifier(config.classifier)
    if classifier.classes != classes:
        raise ManifestError(f"{config.classifier} knows {classifier.classes}, the images have {classes}")
    if classifier.kind == "latent":
        raise ManifestError(f"{config.classifier} is a latent classifier (ϕ); adapt-decoder needs φ, trained on images")
    vae_resolution = context.manifest_of(config.vae).info["resolution"]
    for what, resolution in ((config.vae, vae_resolution), (config.classifier, classifier.resolution)):
        if resolution != config.reader.resolution:
            raise ManifestError(f"{what} works at {resolution} px, reader.resolution is {config.reader.resolution}")
    with training(config, context, config.seed) as plan:
        published = load_autoencoder(config.vae, device())
        vae, perceptual = published.codec.vae, build_perceptual(config.perceptual)
        source = TrainingImages(datasets, config.reader, config.seed)
        task = DecoderTask(vae, classifier, perceptual, config, plan, image_examples(source))
        train("adapt-decoder", task, source, config, context, plan, config.seed)
    if context.world.is_main:
        info = {key: value for key, value in published.info.items() if key not in ("encoder_id", "images_seen")}
        publish_autoencoder(
            vae, context, {**info, "adapted_to": classes, "classifier_weight": config.classifier_weight}
        )
