"""The three kinds of classifier: what each is built from, what its manifest says, and the task that trains it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed

from hdtrain.config.adaptation import ImageClassifier, LatentClassifier, TimmClassifier, TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import ShardAccess
from hdtrain.data.images import TrainingImages, labelled_classes
from hdtrain.data.latents import TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.errors import ManifestError
from hdtrain.features.weights import load_strictly, read_state
from hdtrain.formats.latent_space import check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest
from hdtrain.models.classifier import Classifier
from hdtrain.models.classifiers.timm_model import check_timm
from hdtrain.training.classifier import ClassifierTask, ImageClassifierTask, LatentClassifierTask
from hdtrain.training.fixed_labelled import FixedLabelledImages, FixedLabelledLatents
from hdtrain.training.task import Source

EXAMPLES = 8
ManifestOf = Callable[[Path], Manifest]
Dataset = tuple[Path, Manifest]


def training_sets(config: TrainClassifierConfig, manifest_of: ManifestOf) -> list[Dataset]:
    """What is trained on."""
    model = config.model
    paths = [model.latents] if isinstance(model, LatentClassifier) else model.images
    return [(path, manifest_of(path)) for path in paths]


def access(config: TrainClassifierConfig) -> ShardAccess:
    """How shards are read that are not in their folders."""
    return ShardAccess() if isinstance(config.model, LatentClassifier) else config.model.reader


def describe(config: TrainClassifierConfig, manifest_of: ManifestOf) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture (arguments of `build_classifier`), and what the manifest says of the training data.

    Raises:
        ManifestError: the data are unlabelled, their classes differ, or the validation set does not go with them.
        ConfigError: timm has no such model, or it takes no such images.
    """
    model = config.model
    if isinstance(model, LatentClassifier):
        architecture, info = _describe_latent(model, manifest_of(model.latents))
    else:
        architecture, info = _describe_images(model, training_sets(config, manifest_of))
    if config.validation:
        _check_validation(config, manifest_of, architecture["classes"])
    return architecture, info


def _describe_images(
    model: ImageClassifier | TimmClassifier, datasets: list[Dataset]
) -> tuple[dict[str, Any], dict[str, Any]]:
    classes, reader = labelled_classes(datasets), model.reader
    num_synthetic = sum(manifest.num_samples for _, manifest in datasets if manifest.split == "synthetic")
    num_real = sum(manifest.num_samples for _, manifest in datasets) - num_synthetic
    info = {"kind": model.kind, "resolution": reader.resolution, "resize": reader.resize}
    info |= {"num_real": num_real, "num_synthetic": num_synthetic}
    architecture: dict[str, Any] = {"classes": classes, "resolution": reader.resolution}
    if isinstance(model, ImageClassifier):
        architecture |= {"preset": model.preset, "kind": "image", "in_channels": 3}
        return architecture | ({"dropout": model.dropout} if model.dropout else {}), info
    check_timm(model.name, reader.resolution)
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
        "timesteps": model.timesteps,
        "num_real": latents.num_samples // (2 if latents.info["flips"] else 1),
        "num_synthetic": 0,
    }
    architecture = {"preset": model.preset, "kind": "latent", "in_channels": channels, "resolution": size}
    return architecture | {"classes": latents.classes}, info


def _check_validation(config: TrainClassifierConfig, manifest_of: ManifestOf, classes: list[str]) -> None:
    assert config.validation is not None
    path, manifest = config.validation, manifest_of(config.validation)
    expected = "latents" if isinstance(config.model, LatentClassifier) else "images"
    if manifest.kind != expected:
        raise ManifestError(f"validation {path} is of kind '{manifest.kind}', but training is on {expected}")
    if manifest.split == "test":
        raise ManifestError(
            f"validation {path} is the test split: what is chosen on it looks better there than it is; cut a "
            "validation split from the training patients (`splits` of `hdtrain shard`)"
        )
    if manifest.classes != classes:
        found = ", ".join(manifest.classes or ["none"])
        raise ManifestError(f"classes differ: validation {path} has {found}; training is on {', '.join(classes)}")
    for directory, trained in training_sets(config, manifest_of):
        if trained.identity == manifest.identity:
            raise ManifestError(f"validation {path} holds the same samples as the training set {directory}")
    if isinstance(config.model, LatentClassifier):
        space = manifest_latent_space(manifest_of(config.model.latents))
        ours = manifest_latent_space(manifest)
        check_same_latent_space(f"validation {path}", ours, config.model.latents, space)


def make_task(
    config: TrainClassifierConfig, manifest_of: ManifestOf, plan: BatchPlan, seed: int, classifier: Classifier
) -> tuple[ClassifierTask, Source]:
    """The task for `classifier`, and the data that it trains on in the order of `seed`. A collective."""
    model, datasets = config.model, training_sets(config, manifest_of)
    held_out = [(path, manifest_of(path)) for path in filter(None, [config.validation])]
    count, num_classes = config.validation_images, len(classifier.classes)
    if isinstance(model, LatentClassifier):
        latents = TrainingLatents(datasets, seed)
        schedule, scale = NoiseSchedule(model.schedule), float(datasets[0][1].info["latent_scale"])
        samples, prefix = (TrainingLatents(held_out, 0), "validation") if held_out else (latents, "fixed_noise")
        zero = model.timesteps == "zero"
        fixed = FixedLabelledLatents(samples, count, num_classes, prefix, schedule, scale, zero)
        return LatentClassifierTask(classifier, config, plan, fixed, latents.batch(range(EXAMPLES))), latents
    copies = 0
    if isinstance(model, TimmClassifier):
        copies = model.augmented_copies
        if model.weights:
            load_pretrained(classifier, model.weights)
    images = TrainingImages(datasets, model.reader, seed, copies)
    fixed_images = FixedLabelledImages(held_out, model.reader, count, num_classes) if held_out else None
    return ImageClassifierTask(classifier, config, plan, fixed_images, images.batch(range(EXAMPLES))), images


def load_pretrained(classifier: Classifier, weights: Path) -> None:
    """Start a timm classifier from a weights file, its last layer fresh.

    A vision transformer's positions are resampled where the file is for another size of image.

    Raises:
        WeightsError: the file does not fit the model.
    """
    model: Any = classifier.model
    names = model.pretrained_cfg["classifier"]
    head = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    fresh = {name: value for name, value in model.state_dict().items() if name.startswith(head)}
    state = {name: value for name, value in read_state(weights).items() if not name.startswith(head)}
    positions, wanted = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if positions is not None and wanted is not None and positions.shape[-1] == wanted.shape[-1]:
        grid = list(getattr(getattr(model, "patch_embed", None), "grid_size", ()))
        prefix = wanted.shape[1] - grid[0] * grid[1] if len(grid) == 2 and wanted.ndim == 3 else -1
        if prefix >= 0 and positions.shape != wanted.shape:
            state["pos_embed"] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
    load_strictly(model, state | fresh, weights)
