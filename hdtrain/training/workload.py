"""From a training stage's config and its parents' manifests to the networks that train on one image."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdtrain.config.adaptation import AdaptDecoderConfig, LatentClassifier, TrainClassifierConfig
from hdtrain.config.base import Config
from hdtrain.config.presets import DISCRIMINATOR_CHANNELS
from hdtrain.config.prior import TrainPriorConfig
from hdtrain.config.training import PerceptualConfig, TrainLdmConfig, TrainVaeConfig
from hdtrain.features.perceptual import build_perceptual
from hdtrain.formats.manifest import Manifest
from hdtrain.models.autoencoder import build_autoencoder, make_codec, published_architecture
from hdtrain.models.classifier import build_classifier
from hdtrain.models.denoiser import as_function, build_denoiser
from hdtrain.models.discriminator import PatchDiscriminator
from hdtrain.models.ema import average_names
from hdtrain.training import diffusion_space, prior_space
from hdtrain.training.costs import Costs, Network

ManifestOf = Callable[[Path], Manifest]


def costs_of(config: Config, manifest_of: ManifestOf) -> Costs:
    """The costs of a training stage, built from shapes alone; weights files of perceptual distances are read.

    Args:
        config: of `train-vae`, `train-ldm`, `train-prior`, `train-classifier` or `adapt-decoder`.
        manifest_of: the manifest of a parent, by its run directory.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        if isinstance(config, TrainVaeConfig):
            return _vae(config)
        if isinstance(config, TrainLdmConfig):
            return _diffusion(config, manifest_of)
        if isinstance(config, TrainPriorConfig):
            return _prior(config, manifest_of)
        if isinstance(config, TrainClassifierConfig):
            return _classifier(config, manifest_of)
        assert isinstance(config, AdaptDecoderConfig), f"no training stage: {type(config).__name__}"
        return _decoder(config, manifest_of)


def _vae(config: TrainVaeConfig) -> Costs:
    x = _images(config.reader.resolution)
    vae = build_autoencoder(config.preset, config.reader.resolution)
    networks = [Network("autoencoder", vae, (x,), engine="autoencoder"), *_perceptual(config.perceptual, x)]
    if config.adversarial.weight > 0:
        judge = PatchDiscriminator(DISCRIMINATOR_CHANNELS[config.preset])
        of_judge = partial(Network, module=judge, inputs=(x,), engine="discriminator")
        later = config.adversarial.start_images
        networks.append(of_judge("discriminator, frozen", role="guides", from_images=later))
        networks.append(of_judge("discriminator", images=2, from_images=later))
    return Costs(tuple(networks))


def _diffusion(config: TrainLdmConfig, manifest_of: ManifestOf) -> Costs:
    held: tuple[nn.Module, ...] = ()
    if config.latents and config.vae:
        _, channels, size, _ = (int(n or 0) for n in manifest_of(config.latents).fields["moments"].shape)
        held = (published_architecture(config.vae),)
    else:
        channels, size = 3, config.reader.resolution
    classes = diffusion_space.classes_of(config, manifest_of)
    embedding = diffusion_space.embedding_of(config, manifest_of)
    features = diffusion_space.embedding_features(embedding)
    unet = as_function(build_denoiser(config.preset, channels, size, len(classes) if classes else None, features))
    inputs: tuple[Tensor, ...] = (torch.empty(1, channels, size, size), _timestep())
    if embedding:
        inputs = (*inputs, torch.empty(1, embedding["tokens"], embedding["dim"]))
    if classes:
        inputs = (*inputs, torch.zeros(1, dtype=torch.int64))
    network = Network("denoiser", unet, inputs, engine="denoiser")
    return Costs((network,), len(average_names(config.ema.post_hoc)), held)


def _prior(config: TrainPriorConfig, manifest_of: ManifestOf) -> Costs:
    network = prior_space.build(config, manifest_of)
    sizes: Any = network.config
    rows, columns = config.size
    inputs = (
        torch.empty(1, rows, columns, sizes["dim"]),
        _timestep(),
        torch.ones(1, rows, columns, dtype=torch.bool),
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, dtype=torch.int64),
        torch.empty(1, sizes["text_dim"]),
        torch.empty(1, sizes["numeric_dim"]),
    )
    averages = len(average_names(config.ema.post_hoc))
    return Costs((Network("prior", network, inputs, engine="prior"),), averages)


def _classifier(config: TrainClassifierConfig, manifest_of: ManifestOf) -> Costs:
    from hdtrain.training.classifier_kinds import describe  # brings DeepSpeed, which takes seconds

    architecture, _ = describe(config, manifest_of)
    size = int(architecture["resolution"])
    inputs: tuple[Tensor, ...] = (_images(size),)
    if isinstance(config.model, LatentClassifier):
        inputs = torch.empty(1, int(architecture["in_channels"]), size, size), _timestep()
    return Costs((Network("classifier", build_classifier(architecture), inputs, engine="classifier"),))


def _decoder(config: AdaptDecoderConfig, manifest_of: ManifestOf) -> Costs:
    x = _images(config.reader.resolution)
    vae: Any = published_architecture(config.vae)
    z = torch.empty(1, *make_codec(vae, 1.0).latent_shape)
    networks = [
        Network("encoder", _chain(vae.encoder, vae.quant_conv), (x,), "frozen"),
        Network("decoder", _chain(vae.post_quant_conv, vae.decoder), (z,), engine="decoder"),
        *_perceptual(config.perceptual, x),
    ]
    if config.classifier_weight > 0:
        phi = build_classifier(manifest_of(config.classifier).info["architecture"])
        networks.append(Network("φ", phi, (x,), "guides"))
    return Costs(tuple(networks))


def _perceptual(config: PerceptualConfig, x: Tensor) -> list[Network]:
    distance = build_perceptual(config)
    return [Network(distance.name, distance, (x, torch.empty_like(x)), "compares")] if distance else []


def _chain(*modules: nn.Module | None) -> nn.Module:
    return nn.Sequential(*(module for module in modules if module is not None))


def _images(resolution: int) -> Tensor:
    return torch.empty(1, 3, resolution, resolution)


def _timestep() -> Tensor:
    return torch.zeros(1, dtype=torch.int64)
