"""The two passes over the shards: features of the real images, then scores of the candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from hdtrain.config.synthesis import SelectConfig
from hdtrain.data.images import UNLABELLED, shared_classes
from hdtrain.distributed.collectives import device
from hdtrain.errors import DataError, ManifestError
from hdtrain.features.encoders import Encoder
from hdtrain.features.neighbours import l2_normalise, nearest
from hdtrain.features.parts import Arrays, Parts, classify_shard, embed_shard, shard_units
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader, open_shards
from hdtrain.models.classifier import Classifier, load_classifier
from hdtrain.selection.centroids import Centroids
from hdtrain.selection.choose import Candidates
from hdtrain.selection.gates import passes_gates
from hdtrain.selection.write import Place

DISTANCE_DECIMALS = 6
"""Distances are ranked at this precision, below which float32 features depend on who shared their batch."""
Dataset = tuple[Path, Manifest]


@dataclass(frozen=True)
class Scores:
    """Every candidate, in the order of its key."""

    candidates: Candidates
    nearest_class: Int64[np.ndarray, " n"]
    nearest_real_distance: Float[np.ndarray, " n"]
    """Euclidean, between unit vectors."""
    confidence: Float[np.ndarray, " n"] | None
    places: list[Place]
    num_real: list[int]


def check_classes(real: Sequence[Dataset], candidates: Sequence[Dataset]) -> list[str]:
    """The classes that all sets share.

    Raises:
        ManifestError: a set is unlabelled, or two sets list different classes.
    """
    for path, manifest in [*real, *candidates]:
        if not manifest.classes:
            raise ManifestError(
                f"{path}: its images have no classes; selection needs labelled real and synthetic images"
            )
    return shared_classes([*real, *candidates]) or []


def load_gate(config: SelectConfig, classes: list[str]) -> Classifier | None:
    """φ on this rank's device, or None.

    Raises:
        ManifestError: it takes latents, or knows other classes.
    """
    if config.classifier is None:
        return None
    classifier = load_classifier(config.classifier)
    if classifier.kind == "latent" or classifier.classes != classes:
        raise ManifestError(
            f"{config.classifier}: gate A needs a classifier of images with the classes {', '.join(classes)}; "
            f"this one is of kind {classifier.kind} with {', '.join(classifier.classes)}"
        )
    return classifier.to(device())


def score(
    config: SelectConfig,
    real: Sequence[Dataset],
    candidates: Sequence[Dataset],
    encoder: Encoder,
    parts: Parts,
) -> Scores:
    """Both passes, split over the ranks by shard and merged in the order of the shards; the same on every rank."""
    classes = check_classes(real, candidates)
    classifier = load_gate(config, classes)

    def embed(reader: ShardReader) -> Arrays:
        return embed_shard(reader, encoder, config.batch_size, config.resolution)

    real_units = [u for i, dataset in enumerate(real) for u in shard_units(f"real-{i}", dataset, embed)]
    parts.compute("select: real features", real_units)
    reference = parts.load(real_units)
    centroids = Centroids.from_features(reference["features"], reference["labels"], classes)
    real_features = l2_normalise(reference["features"])

    def score_shard(reader: ShardReader) -> Arrays:
        embedded = embed(reader)
        labels, features = embedded["labels"], embedded["features"]
        if (labels == UNLABELLED).any():
            raise DataError(f"{reader.path}: unlabelled candidates; sample with a classifier, so that each has a class")
        distances = centroids.distances(features)
        arrays = {
            "keys": embedded["keys"],
            "labels": labels,
            "sample": np.arange(len(labels)),
            "target_distance": np.round(distances[np.arange(len(labels)), labels], DISTANCE_DECIMALS),
            "nearest_class": distances.argmin(axis=1),
            "nearest_real_distance": np.round(nearest(l2_normalise(features), real_features)[0], DISTANCE_DECIMALS),
        }
        if classifier is not None:
            probabilities = classify_shard(reader, [classifier], config.batch_size)["probabilities"][:, 0]
            arrays["confidence"] = probabilities[np.arange(len(labels)), labels]
        return arrays

    units = [u for i, dataset in enumerate(candidates) for u in shard_units(f"candidates-{i}", dataset, score_shard)]
    parts.compute("select: candidates", units)
    readers = [reader for path, manifest in candidates for reader in open_shards(path, manifest)]
    return _merge(config, parts.load(units), readers, [int(n) for n in centroids.counts])


def _merge(config: SelectConfig, table: Arrays, readers: Sequence[ShardReader], num_real: list[int]) -> Scores:
    if not table or not len(table["keys"]):
        raise DataError("the candidates' shards hold no image; run `hdtrain sample` first")
    order = np.argsort(table["keys"], kind="stable")
    shard_of = np.repeat(np.arange(len(readers)), [reader.sidecar.samples for reader in readers])
    places = [Place(readers[shard_of[row]], int(table["sample"][row])) for row in order]
    table = {name: column[order] for name, column in table.items()}
    keys = table["keys"]
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        raise DataError(
            f"{len(twice)} candidates share a key with another, the first is {twice[0]}: keys must be unique"
        )
    confidence = table.get("confidence")
    passes = passes_gates(config.gates, table["labels"], table["nearest_class"], confidence)
    pool = Candidates(keys, table["labels"], table["target_distance"], passes)
    return Scores(pool, table["nearest_class"], table["nearest_real_distance"], confidence, places, num_real)
