"""The three kinds of classifier: what each is built from, what its manifest says, and the task that trains it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdtrain.config.adaptation import ImageClassifier, LatentClassifier, TimmClassifier, TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.data.images import TrainingImages, labelled_classes
from hdtrain.data.latents import TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.errors import ManifestError
from hdtrain.features.weights import load_strictly, read_state
from hdtrain.formats.manifest import Manifest
from hdtrain.models.classifier import Classifier
from hdtrain.training.classifier import ImageClassifierTask, LatentClassifierTask
from hdtrain.training.task import Source, Task

EXAMPLES = 8
ManifestOf = Callable[[Path], Manifest]


def describe(config: TrainClassifierConfig, manifest_of: ManifestOf) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture (arguments of `build_classifier`), and what the manifest says of the training data.

    Raises:
        ManifestError: the data are unlabelled, or their classes differ.
    """
    model = config.model
    if isinstance(model, LatentClassifier):
        return _describe_latent(model, manifest_of(model.latents))
    datasets = [(path, manifest_of(path)) for path in model.images]
    classes, reader = labelled_classes(datasets), model.reader
    num_synthetic = sum(manifest.num_samples for _, manifest in datasets if manifest.split == "synthetic")
    num_real = sum(manifest.num_samples for _, manifest in datasets) - num_synthetic
    info = {"kind": model.kind, "resolution": reader.resolution, "resize": reader.resize}
    info |= {"num_real": num_real, "num_synthetic": num_synthetic}
    architecture = {"classes": classes, "resolution": reader.resolution}
    if isinstance(model, ImageClassifier):
        return architecture | {"preset": model.preset, "kind": "image", "in_channels": 3}, info
    info["num_augmented"] = model.augmented_copies * (num_real + num_synthetic)
    return architecture | {"name": model.name}, info


def _describe_latent(model: LatentClassifier, latents: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    if not latents.classes:
        raise ManifestError(f"{model.latents} is unlabelled; ϕ needs class labels")
    _, channels, size, _ = latents.fields["moments"].shape
    info = {
        "kind": "latent",
        "resolution": size,
        "encoder_id": latents.info["encoder_id"],
        "latent_scale": latents.info["latent_scale"],
        "schedule": model.schedule.model_dump(),
        "num_real": latents.num_samples // (2 if latents.info["flips"] else 1),
        "num_synthetic": 0,
    }
    architecture = {"preset": model.preset, "kind": "latent", "in_channels": channels, "resolution": size}
    return architecture | {"classes": latents.classes}, info


def make_task(
    config: TrainClassifierConfig, manifest_of: ManifestOf, plan: BatchPlan, seed: int, classifier: Classifier
) -> tuple[Task, Source]:
    """The task for `classifier`, and the data that it trains on in the order of `seed`."""
    model = config.model
    if isinstance(model, LatentClassifier):
        manifest = manifest_of(model.latents)
        latents = TrainingLatents([(model.latents, manifest)], seed)
        schedule, scale = NoiseSchedule(model.schedule), float(manifest.info["latent_scale"])
        examples = latents.batch(range(EXAMPLES))
        return LatentClassifierTask(classifier, config, plan, schedule, scale, examples), latents
    copies = 0
    if isinstance(model, TimmClassifier):
        copies = model.augmented_copies
        if model.weights:
            load_pretrained(classifier, model.weights)
    images = TrainingImages([(path, manifest_of(path)) for path in model.images], model.reader, seed, copies)
    return ImageClassifierTask(classifier, config, plan, images.batch(range(EXAMPLES))), images


def load_pretrained(classifier: Classifier, weights: Path) -> None:
    """Start a timm classifier from a weights file, its last layer fresh.

    Raises:
        WeightsError: the file does not fit the model.
    """
    model: Any = classifier.model
    names = model.pretrained_cfg["classifier"]
    head = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    fresh = {name: value for name, value in model.state_dict().items() if name.startswith(head)}
    state = {name: value for name, value in read_state(weights).items() if not name.startswith(head)}
    load_strictly(model, state | fresh, weights)
