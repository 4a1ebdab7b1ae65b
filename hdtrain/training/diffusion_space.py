"""Where diffusion happens, a latent space or pixels: what is read for it, and what the manifest says of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.images import TrainingImages, labelled_classes
from hdtrain.data.latents import TrainingLatents
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.distributed.collectives import device
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.embedding_space import check_same_encoder
from hdtrain.formats.latent_space import PIXELS, check_same_latent_space, manifest_latent_space
from hdtrain.formats.manifest import Manifest
from hdtrain.models.autoencoder import Codec, PixelCodec, load_autoencoder
from hdtrain.training.fixed_noise import Source

ManifestOf = Callable[[Path], Manifest]


@dataclass(frozen=True)
class DiffusionSpace:
    """Training and validation samples, and the codec of their space."""

    source: Source
    validation: Source | None
    codec: Codec


def describe(config: TrainLdmConfig, manifest_of: ManifestOf) -> dict[str, Any]:
    """What the denoiser's manifest says of its space and condition.

    Raises:
        ManifestError: latents, validation set and autoencoder are not of one space, or not all labelled alike.
    """
    expected = "latents" if config.latents else "images"
    if config.validation and (kind := manifest_of(config.validation).kind) != expected:
        raise ManifestError(f"validation {config.validation} is of kind '{kind}', but training is on {expected}")
    condition: dict[str, Any] = {}
    if classes_of(config, manifest_of):
        condition = {"class_conditional": True, "label_dropout": config.label_dropout}
    if embedding := embedding_of(config, manifest_of):
        condition["embedding"] = embedding
    if config.vae is None:
        return {"space": PIXELS, "resolution": config.reader.resolution, "resize": config.reader.resize, **condition}
    space = manifest_latent_space(manifest_of(config.vae))
    for path in filter(None, (config.latents, config.validation)):
        check_same_latent_space(f"latents {path}", manifest_latent_space(manifest_of(path)), config.vae, space)
    return {"space": "latents", **space, **condition}


def embedding_of(config: TrainLdmConfig, manifest_of: ManifestOf) -> dict[str, Any] | None:
    """What the denoiser looks at: its `dim`, `tokens`, `token_order`, `encoder`, `encoder_hash`, `image_px`, `dropout`,
    and `places` where it is told which token is which.

    None if it looks at nothing.

    Raises:
        ManifestError: embeddings, or the start, are of different encoders.
    """
    start = manifest_of(config.start).info.get("embedding") if config.start else None
    if not config.embeddings:
        if start:
            raise ManifestError(
                f"start {config.start} is conditional on embeddings of {start['encoder']['name']}, and this training "
                "has none; give embeddings=[RUN], or start from another denoiser"
            )
        return None
    info = manifest_of(config.embeddings[0]).info
    keys = ("dim", "tokens", "token_order", "encoder", "encoder_hash")
    first = {key: info[key] for key in keys if key in info}
    for path in config.embeddings[1:]:
        check_same_encoder(str(path), manifest_of(path).info, str(config.embeddings[0]), first)
    if start:
        check_same_encoder(str(config.embeddings[0]), first, f"start {config.start}", start)
    places = _places(config, first, start, manifest_of)
    sizes = sorted({tuple(size) for path in config.embeddings for size in manifest_of(path).info.get("image_px", [])})
    known = {"image_px": [list(size) for size in sizes]} if sizes else {}
    return {**first, **known, **places, "dropout": config.embedding_dropout}


def embedding_features(embedding: dict[str, Any] | None) -> int | None:
    """Features of a token as the U-Net gets it; None where it looks at nothing."""
    if embedding is None:
        return None
    return int(embedding["dim"]) + (int(embedding["tokens"]) if embedding.get("places") else 0)


def _places(
    config: TrainLdmConfig, embedding: dict[str, Any], start: dict[str, Any] | None, manifest_of: ManifestOf
) -> dict[str, bool]:
    """Whether tokens are told apart, for the manifest.

    Raises:
        ConfigError: there is one token, or images are mirrored, and the places in them are not.
        ManifestError: the start was trained otherwise.
    """
    if start and bool(start.get("places")) != config.embedding_places:
        told = "is told" if start.get("places") else "is not told"
        raise ManifestError(
            f"start {config.start} {told} which of its tokens is which; give "
            f"embedding_places={str(not config.embedding_places).lower()}, or start from another denoiser"
        )
    if not config.embedding_places:
        return {}
    problem = None
    if embedding["tokens"] == 1:
        problem = f"tells several tokens apart, and {config.embeddings[0]} has one; leave it out, or embed more views"
    elif any(name.startswith("grid-") for name in embedding.get("token_order") or ("grid-",)):
        if config.latents and manifest_of(config.latents).info["flips"]:
            problem = f"{config.latents} holds mirrored images, whose parts lie elsewhere; encode with flips=false"
        elif config.images and config.reader.flips:
            problem = "images are mirrored while they are read, and their parts are not; give reader.flips=false"
    if problem:
        raise ConfigError("train-ldm", [f"embedding_places: {problem}"])
    return {"places": True}


def classes_of(config: TrainLdmConfig, manifest_of: ManifestOf) -> list[str] | None:
    """The classes of a class-conditional denoiser, in label order; None for one that is unconditional.

    Raises:
        ManifestError: samples are unlabelled, or they, the validation set and the start have different classes.
    """
    start = manifest_of(config.start).classes if config.start else None
    if not config.class_conditional:
        if start:
            raise ManifestError(
                f"start {config.start} is conditional on {', '.join(start)}, and this training is unconditional; set "
                "class_conditional=true, or start from an unconditional denoiser"
            )
        return None
    paths = [path for path in (config.latents, *config.images, config.validation) if path]
    unlabelled = [str(path) for path in paths if not manifest_of(path).classes]
    if unlabelled:
        raise ManifestError(
            f"class_conditional=true needs labelled samples; unlabelled: {', '.join(unlabelled)}. Give labelled "
            "ones, or leave class_conditional out"
        )
    classes = labelled_classes([(path, manifest_of(path)) for path in paths])
    if start and start != classes:
        raise ManifestError(
            f"start {config.start} is conditional on {', '.join(start)}, and the samples have the classes "
            f"{', '.join(classes)}; start from an unconditional denoiser, or from one of the same classes"
        )
    return classes


def open_space(config: TrainLdmConfig, manifest_of: ManifestOf) -> DiffusionSpace:
    """Open what `config` names, its codec on this rank's device."""
    embeddings = None
    if config.embeddings:
        found = [(path, manifest_of(path)) for path in config.embeddings]
        embeddings = RecordsByKey(found, "embedding", 4 * config.reader.block_shards)
    held_out = [(path, manifest_of(path)) for path in filter(None, [config.validation])]
    if config.latents and config.vae:
        return DiffusionSpace(
            TrainingLatents([(config.latents, manifest_of(config.latents))], config.seed, embeddings=embeddings),
            TrainingLatents(held_out, config.seed, embeddings=embeddings) if held_out else None,
            load_autoencoder(config.vae, device()).codec,
        )
    datasets, plain = [(path, manifest_of(path)) for path in config.images], {"weights": None}
    return DiffusionSpace(
        TrainingImages(datasets, config.reader, config.seed, embeddings=embeddings),
        TrainingImages(held_out, config.reader.model_copy(update=plain), config.seed, embeddings=embeddings)
        if held_out
        else None,
        PixelCodec(config.reader.resolution),
    )
