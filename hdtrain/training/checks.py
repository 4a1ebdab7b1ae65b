"""What a training stage refuses by its parents' manifests and indices, before it trains: for `--dry-run`."""

from collections.abc import Callable
from pathlib import Path

from hdtrain.config.adaptation import AdaptDecoderConfig
from hdtrain.config.base import Config
from hdtrain.config.prior import TrainPriorConfig
from hdtrain.config.training import TrainLdmConfig
from hdtrain.data.images import labelled_classes
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.training import diffusion_space, prior_space

ManifestOf = Callable[[Path], Manifest]


def check(config: Config, manifest_of: ManifestOf) -> None:
    """Raise what the stage of `config` would raise before it trains.

    A classifier's labels are checked where its architecture is made (`hdtrain.training.classifier_kinds.describe`).

    Raises:
        ManifestError: parents do not go together.
        DataError: there is nothing in them to train on.
    """
    if isinstance(config, TrainLdmConfig):
        diffusion_space.describe(config, manifest_of)
    if isinstance(config, TrainPriorConfig):
        prior_space.describe(config, manifest_of)
        prior_space.check_crops(config, manifest_of)
    if isinstance(config, AdaptDecoderConfig):
        check_decoder(config, manifest_of)


def check_decoder(config: AdaptDecoderConfig, manifest_of: ManifestOf) -> list[str]:
    """The class names that φ and the images share.

    Raises:
        ManifestError: the images are unlabelled, φ knows other classes or is a ϕ, or a resolution differs.
    """
    classes = labelled_classes([(path, manifest_of(path)) for path in config.images])
    phi, vae = manifest_of(config.classifier), manifest_of(config.vae)
    if phi.classes != classes:
        raise ManifestError(f"{config.classifier} knows {phi.classes}, the images have {classes}")
    if phi.info["kind"] == "latent":
        raise ManifestError(f"{config.classifier} is a latent classifier (ϕ); adapt-decoder needs φ, trained on images")
    for path, manifest in ((config.vae, vae), (config.classifier, phi)):
        if manifest.info["resolution"] != config.reader.resolution:
            works_at = manifest.info["resolution"]
            raise ManifestError(f"{path} works at {works_at} px, reader.resolution is {config.reader.resolution}")
    return classes
