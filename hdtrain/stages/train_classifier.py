"""`hdtrain train-classifier CONFIG --out RUN`: φ on images, ϕ on noisy latents, or a timm model; once a seed."""

from typing import Any

from safetensors.torch import load_file, save_file

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import ImageClassifier, LatentClassifier, TimmClassifier, TrainClassifierConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import process_group
from hdtrain.errors import ManifestError
from hdtrain.models.classifier import Classifier, build_classifier, weights_file
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import datasets_of, image_examples, labelled_classes, latent_examples, train, training
from hdtrain.training.classifier import ClassifierTask, ImageClassifierTask, LatentClassifierTask

REPORTED_TIMESTEPS = [0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900]


def run(config: TrainClassifierConfig, context: StageContext) -> None:
    """Run the stage; a seed whose weights are there is not trained again."""
    architecture, info = _describe(config, context)
    with process_group():
        for seed in config.seeds:
            if weights_file(context.run.path, seed).exists():
                continue
            with training(config, context, seed) as plan:
                _train_seed(config, context, plan, seed, architecture)
    if context.world.is_main:
        plan = BatchPlan.from_config(config.batch, context.world.size)
        info |= {"seeds": config.seeds, "steps": plan.num_steps(config.duration.images), "architecture": architecture}
        files = [weights_file(context.run.path, seed) for seed in config.seeds]
        context.publish(files=files, classes=architecture["classes"], info=info)


def _describe(config: TrainClassifierConfig, context: StageContext) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture, and what the manifest says of the training data."""
    model = config.model
    if isinstance(model, LatentClassifier):
        latents = context.manifest_of(model.latents)
        if not latents.classes:
            raise ManifestError(f"{model.latents} is unlabelled; ϕ needs class labels")
        _, channels, size, _ = latents.fields["moments"].shape
        space = {key: latents.info[key] for key in ("encoder_id", "latent_scale")}
        info = {"kind": "latent", **space, "schedule": model.schedule.model_dump(), "num_real": latents.num_samples}
        architecture = {"preset": model.preset, "kind": "latent", "in_channels": channels, "resolution": size}
        return architecture | {"classes": latents.classes}, info | {"num_synthetic": 0, "resolution": size}
    datasets = datasets_of(context, model.images)
    classes, resolution = labelled_classes(datasets), model.reader.resolution
    counts = {
        "num_real": sum(m.num_samples for _, m in datasets if m.split != "synthetic"),
        "num_synthetic": sum(m.num_samples for _, m in datasets if m.split == "synthetic"),
    }
    info = {"kind": model.kind, "resolution": resolution, **counts}
    if isinstance(model, ImageClassifier):
        architecture = {"preset": model.preset, "kind": "image", "in_channels": 3}
        return architecture | {"classes": classes, "resolution": resolution}, info
    return {"name": model.name, "classes": classes, "resolution": resolution}, info | {"num_augmented": model.augmented_copies * sum(counts.values())}


def _train_seed(
    config: TrainClassifierConfig, context: StageContext, plan: BatchPlan, seed: int, architecture: dict[str, Any]
) -> None:
    classifier = build_classifier(architecture)
    if isinstance(config.model, TimmClassifier) and config.model.weights:
        classifier.model.load_state_dict(load_file(config.model.weights), strict=False)  # type: ignore[union-attr]
    task, source = _task(config, context, plan, seed, classifier)
    train(f"train-classifier seed {seed}", task, source, config, context, plan, seed, context.run.seed(seed))
    if context.world.is_main:
        context.run.model.mkdir(exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
        save_file(weights, weights_file(context.run.path, seed))


def _task(
    config: TrainClassifierConfig, context: StageContext, plan: BatchPlan, seed: int, classifier: Classifier
) -> tuple[ClassifierTask, Any]:
    model = config.model
    if isinstance(model, LatentClassifier):
        manifest = context.manifest_of(model.latents)
        latents = TrainingLatents(model.latents, manifest, seed)
        schedule, scale = NoiseSchedule(model.schedule), float(manifest.info["latent_scale"])
        return LatentClassifierTask(classifier, config, plan, schedule, scale, latent_examples(latents)), latents
    copies = model.augmented_copies if isinstance(model, TimmClassifier) else 0
    source = TrainingImages(datasets_of(context, model.images), model.reader, seed, copies)
    return ImageClassifierTask(classifier, config, plan, image_examples(source)), source
