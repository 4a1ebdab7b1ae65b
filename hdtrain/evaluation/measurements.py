"""What is known of every image before it is scored: features, the judge's opinion, looks, nearest training images.

Parts are made by whoever claims them, one a shard; what a part holds depends on its shard and the training images
alone. Resident are one shard of queries with one of training images, the training images' small pixels, and of every
image of every set its key and some dozens of numbers. Features stay on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.evaluation.colour_statistics import appearance_shard
from hdtrain.evaluation.inputs import Dataset, Inputs
from hdtrain.evaluation.memorisation import MIN_REFERENCE, TrainingImages, nearest_training_images
from hdtrain.evaluation.moments import moments_of
from hdtrain.evaluation.set_statistics import enough_for_frechet
from hdtrain.features.centroids import Centroids, make_centroids
from hdtrain.features.encoders import Encoder
from hdtrain.features.parts import Arrays, Parts, Unit, classify_shard, shard_units
from hdtrain.features.store import FeatureSet, FeatureStore, embed_dataset
from hdtrain.formats.shards import ShardReader
from hdtrain.models.classifier import load_classifier

TRAIN = "train"
PIXELS = "pixels"
Families = dict[str, list[Unit]]
"""What is measured besides features (looks, judge, near, far) to its units, one a shard."""


@dataclass(frozen=True)
class Measured:
    """A set of images."""

    identity: str
    """Of its manifest."""
    features: FeatureSet
    table: Arrays
    """One row an image: keys, labels, stain_statistics, own_distance, nearest_class; with a judge probabilities; with
    enough training images those of `nearest_training_images`."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Of every image."""
        return self.table["labels"]


def measure_sets(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, parts: Parts, store: FeatureStore
) -> tuple[Measured, dict[str, Measured]]:
    """The training images and every set; what two names stand for is measured once.

    The sums of features that the scores need are made too, and lie beside the features afterwards.
    """
    measure = _Measure.of(config, encoder, parts)
    named = {TRAIN: inputs.train, **inputs.image_sets}
    datasets: dict[Path, tuple[str, Dataset]] = {}
    for name, dataset in named.items():
        datasets.setdefault(dataset[0], (name, dataset))
    features = {
        path: embed_dataset(
            f"evaluate: features of {name}", dataset, encoder, store, config.batch_size, config.resolution
        )
        for path, (name, dataset) in datasets.items()
    }
    train = features[inputs.train[0]]
    families = {path: measure.families(name, dataset) for path, (name, dataset) in datasets.items()}
    known = families[inputs.train[0]]["looks"]
    centroids = make_centroids(f"sums-{inputs.train[1].identity[:16]}", [train], len(inputs.classes), parts)
    pixels = parts.load(known, without=("keys", "stain_statistics"))[PIXELS]
    for path, (name, dataset) in datasets.items():
        families[path]["far"] = measure.far(name, dataset, features[path], centroids)
        if len(train) >= MIN_REFERENCE:
            of = features[path], families[path]["looks"]
            own = path == inputs.train[0]
            families[path]["near"] = measure.near(name, dataset, of, TrainingImages(train.blocks, pixels), own)
    tables = {
        path: Measured(dataset[1].identity, features[path], measure.table(families[path], features[path]))
        for path, (_, dataset) in datasets.items()
    }
    _make_sums(list(tables.values()), tables[inputs.train[0]], len(inputs.classes), store)
    return tables[inputs.train[0]], {name: tables[path] for name, (path, _) in inputs.image_sets.items()}


def _make_sums(sets: list[Measured], train: Measured, num_classes: int, store: FeatureStore) -> None:
    enough = enough_for_frechet(train.features.dim)
    real = np.bincount(train.labels, minlength=num_classes)
    for found in sets:
        moments_of(found.features, store)
        for label in np.flatnonzero(np.minimum(real, np.bincount(found.labels, minlength=num_classes)) >= enough):
            moments_of(found.features, store, int(label))


@dataclass
class _Measure:
    parts: Parts
    shard_work: dict[str, Callable[[ShardReader], Arrays]]

    @classmethod
    def of(cls, config: EvaluateConfig, encoder: Encoder, parts: Parts) -> "_Measure":
        size, resolution = config.batch_size, config.resolution
        work: dict[str, Callable[[ShardReader], Arrays]] = {
            "looks": partial(appearance_shard, batch_size=size, resolution=resolution, small_px=config.memorisation_px),
        }
        if config.judge:
            judge = load_classifier(config.judge).to(device())
            work["judge"] = partial(classify_shard, classifiers=[judge], batch_size=size)
        return cls(parts, work)

    def families(self, name: str, dataset: Dataset) -> Families:
        made = {}
        for family, work in self.shard_work.items():
            made[family] = shard_units(f"{family}-{dataset[1].identity[:16]}", dataset, work)
            self.parts.compute(f"evaluate: {family} of {name}", made[family])
        return made

    def near(
        self, name: str, dataset: Dataset, of: tuple[FeatureSet, list[Unit]], train: TrainingImages, own: bool
    ) -> list[Unit]:
        features, looks = of

        def compute(number: int) -> Arrays:
            (seen,) = self.parts.each([looks[number]])
            queries = {"features": features.shard(number), PIXELS: seen[PIXELS]}
            return nearest_training_images(queries, train, int(features.starts[number]) if own else None)

        return self._by_shard(
            f"near-{'own-' if own else ''}", f"nearest training images of {name}", dataset, features, compute
        )

    def far(self, name: str, dataset: Dataset, features: FeatureSet, centroids: Centroids) -> list[Unit]:
        def compute(number: int) -> Arrays:
            labels = features.pieces[number].listing()[1]
            distances = np.sqrt(centroids.distances(features.shard(number)))
            own = distances[np.arange(len(labels)), labels]
            return {"own_distance": own, "nearest_class": distances.argmin(axis=1)}

        return self._by_shard("far-", f"distances to the classes of {name}", dataset, features, compute)

    def _by_shard(
        self, prefix: str, title: str, dataset: Dataset, features: FeatureSet, compute: Callable[[int], Arrays]
    ) -> list[Unit]:
        units = [
            Unit(f"{prefix}{dataset[1].identity[:16]}-{number:06d}", samples, partial(compute, number))
            for number, samples in enumerate(features.samples)
        ]
        self.parts.compute(f"evaluate: {title}", units)
        return units

    def table(self, families: Families, features: FeatureSet) -> Arrays:
        table: Arrays = {"labels": features.labels}
        for units in families.values():
            table |= self.parts.load(units, without=(PIXELS,))
        if "probabilities" in table:
            table["probabilities"] = table["probabilities"][:, 0]
        return table
