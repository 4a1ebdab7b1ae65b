"""Building classifiers and loading published ones; the kinds are in `hdtrain.models.classifiers`."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import check_files, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.models.classifiers.base import Classifier
from hdtrain.models.classifiers.encoder import EncoderClassifier
from hdtrain.models.classifiers.timm_model import TimmClassifier

__all__ = [
    "Classifier",
    "EncoderClassifier",
    "TimmClassifier",
    "build_classifier",
    "load_classifier",
    "weights_file",
]


def build_classifier(architecture: dict[str, Any]) -> Classifier:
    """A fresh classifier from its manifest's `architecture`."""
    arguments = dict(architecture)
    return TimmClassifier(**arguments) if "name" in arguments else EncoderClassifier(**arguments)


def weights_file(directory: Path, seed: int) -> Path:
    """Where the weights of one seed lie."""
    return RunDir(directory).model / f"seed-{seed}.safetensors"


def load_classifier(directory: Path, seed: int | None = None) -> Classifier:
    """Load one seed's classifier (default: the first), frozen, in eval mode, with its `resize` and `temperature`.

    Raises:
        ManifestError: not published, or it was not trained with that seed.
    """
    manifest = read_manifest(directory, ("classifier",))
    check_files(directory, manifest)
    seeds: list[int] = manifest.info["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ManifestError(f"{directory}: no classifier of seed {seed}; trained seeds: {', '.join(map(str, seeds))}")
    model = build_classifier(manifest.info["architecture"])
    model.load_state_dict(load_file(weights_file(directory, seed)))
    model.resize = manifest.info.get("resize", "squash")
    model.temperature = float(manifest.info.get("temperature", {}).get(str(seed), 1.0))
    return model.requires_grad_(False).eval()
