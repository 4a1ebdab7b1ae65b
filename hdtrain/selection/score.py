"""The two passes over the shards: features of the real images, then scores of the candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from hdtrain.config.synthesis import SelectConfig
from hdtrain.data.images import UNLABELLED, shared_classes
from hdtrain.errors import DataError, ManifestError
from hdtrain.features.encoders import Encoder
from hdtrain.features.neighbours import l2_normalise, nearest
from hdtrain.features.parts import Arrays, Parts, Unit, embed_shard, shard_units
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.shards import ShardReader
from hdtrain.models.classifier import Classifier
from hdtrain.selection.centroids import Centroids
from hdtrain.selection.choose import Candidates
from hdtrain.selection.gate_a import judge_shard, load_gate
from hdtrain.selection.gates import PASSES, Evidence, fell_at
from hdtrain.selection.write import Place

DISTANCE_DECIMALS = 6
"""Distances are ranked at this precision, below which float32 features depend on who shared their batch."""
SYNTHETIC = "synthetic"
Dataset = tuple[Path, Manifest]


@dataclass(frozen=True)
class Scores:
    """Every candidate, in the order of its key."""

    candidates: Candidates
    evidence: Evidence
    fell_at: Int[np.ndarray, " n"]
    """Position in `gates.GATES`, or `gates.PASSES`."""
    nearest_real_distance: Float[np.ndarray, " n"]
    """Euclidean, between unit vectors."""
    topped_up: Bool[np.ndarray, " n"]
    """Made by the selection itself, for want of enough that pass."""
    places: list[Place]
    num_real: list[int]

    def count(self, which: Bool[np.ndarray, " n"]) -> list[int]:
        """How many of those rows there are of each class."""
        return [int(n) for n in np.bincount(self.candidates.labels[which], minlength=len(self.num_real))]

    @property
    def per_class(self) -> list[int]:
        """Candidates of each class."""
        return self.count(np.ones(len(self.places), bool))

    @property
    def passed(self) -> list[int]:
        """Those that pass the gates, of each class."""
        return self.count(self.candidates.passes)

    def chosen(self, rows: Int[np.ndarray, " m"]) -> tuple[list[Place], list[str]]:
        """Places and keys of some of the rows."""
        return [self.places[row] for row in rows], [str(self.candidates.keys[row]) for row in rows]


def check_classes(real: Sequence[Dataset], candidates: Sequence[Dataset]) -> list[str]:
    """The classes that all sets share.

    Raises:
        ManifestError: a set is unlabelled, two sets list different classes, or candidates are not synthetic.
    """
    for path, manifest in [*real, *candidates]:
        if not manifest.classes:
            raise ManifestError(
                f"{path}: its images have no classes; selection needs labelled real and synthetic images"
            )
    for path, manifest in candidates:
        if manifest.split != SYNTHETIC:
            raise ManifestError(
                f"candidates {path} are of the split '{manifest.split}', expected '{SYNTHETIC}': what is selected is "
                f"counted as synthetic; for another generator's images run `hdtrain shard` with split={SYNTHETIC}"
            )
    return shared_classes([*real, *candidates]) or []


@dataclass
class Scorer:
    """What candidates are scored by, and every table so far; the same on every rank."""

    config: SelectConfig
    classes: list[str]
    encoder: Encoder
    classifier: Classifier | None
    parts: Parts
    centroids: Centroids
    real_features: Float64[np.ndarray, "n d"]
    """Unit vectors."""
    _tables: list[Arrays] = field(default_factory=list)
    _readers: list[ShardReader] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        config: SelectConfig,
        real: Sequence[Dataset],
        candidates: Sequence[Dataset],
        encoder: Encoder,
        parts: Parts,
    ) -> "Scorer":
        """Check the sets and φ, then the first pass: centroids of the real images, split over the ranks by shard.

        Raises:
            ManifestError: sets or classifier do not fit each other.
            DataError: a class without real images.
        """
        classes = check_classes(real, candidates)
        classifier = load_gate(config, classes)
        embed = partial(embed_shard, encoder=encoder, batch_size=config.batch_size, resolution=config.resolution)
        units = [u for i, dataset in enumerate(real) for u in shard_units(f"real-{i}", dataset, embed)]
        parts.compute("select: real features", units)
        found = parts.load(units)
        centroids = Centroids.from_features(found["features"], found["labels"], classes)
        return cls(config, classes, encoder, classifier, parts, centroids, l2_normalise(found["features"]))

    def add(self, candidates: Sequence[Dataset]) -> Scores:
        """The second pass over published candidates, split over the ranks by shard; then all scores so far.

        Raises:
            DataError: no image, one without a label, or two of one key.
        """
        units, readers = [], []
        for i, (directory, manifest) in enumerate(candidates):
            units += shard_units(f"candidates-{i}", (directory, manifest), self._score)
            readers += [ShardReader(directory / entry.name, retry_sec=PATIENCE_SEC) for entry in manifest.shards]
        return self._extend("select: candidates", units, readers, topped_up=False)

    def add_topped_up(self, shards: Sequence[Path]) -> Scores:
        """The same over shards that this run made itself and has yet to publish."""
        readers = [ShardReader(shard, retry_sec=PATIENCE_SEC) for shard in shards]
        units = [
            Unit(f"topped-up-{reader.path.stem}", reader.sidecar.samples, partial(self._score, reader))
            for reader in readers
        ]
        return self._extend("select: topped up", units, readers, topped_up=True)

    def _extend(self, title: str, units: list[Unit], readers: list[ShardReader], topped_up: bool) -> Scores:
        self.parts.compute(title, units)
        table = self.parts.load(units)
        if not table or not len(table["keys"]):
            raise DataError("the candidates' shards hold no image; run `hdtrain sample` first")
        samples = [reader.sidecar.samples for reader in readers]
        table["shard"] = len(self._readers) + np.repeat(np.arange(len(readers)), samples)
        table["topped_up"] = np.full(len(table["keys"]), topped_up)
        self._tables.append(table)
        self._readers += readers
        merged = {name: np.concatenate([part[name] for part in self._tables]) for name in table}
        return _merge(self.config, merged, self._readers, [int(n) for n in self.centroids.counts])

    def _score(self, reader: ShardReader) -> Arrays:
        embedded = embed_shard(reader, self.encoder, self.config.batch_size, self.config.resolution)
        labels, features = embedded["labels"], embedded["features"]
        if (labels == UNLABELLED).any():
            raise DataError(
                f"{reader.path}: unlabelled candidates, expected a class of each; sample with a classifier or a "
                "class-conditional denoiser, or shard a folder with a sub-folder a class"
            )
        distances = self.centroids.distances(features)
        arrays = {
            "keys": embedded["keys"],
            "labels": labels,
            "sample": np.arange(len(labels)),
            "target_distance": np.round(distances[np.arange(len(labels)), labels], DISTANCE_DECIMALS),
            "nearest_class": distances.argmin(axis=1),
            "nearest_real_distance": np.round(
                nearest(l2_normalise(features), self.real_features)[0], DISTANCE_DECIMALS
            ),
        }
        return arrays | (judge_shard(reader, self.classifier, self.config) if self.classifier else {})


def _merge(config: SelectConfig, table: Arrays, readers: Sequence[ShardReader], num_real: list[int]) -> Scores:
    order = np.argsort(table["keys"], kind="stable")
    table = {name: column[order] for name, column in table.items()}
    places = [Place(readers[shard], int(sample)) for shard, sample in zip(table["shard"], table["sample"], strict=True)]
    keys = table["keys"]
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        raise DataError(
            f"{len(twice)} candidates share a key with another, the first is {twice[0]}: keys must be unique"
        )
    evidence = Evidence(
        keys,
        table["labels"],
        table["target_distance"],
        table["nearest_class"],
        table.get("confidence"),
        table.get("predicted_class"),
        table.get("entropy"),
    )
    fell = fell_at(config.gates, evidence)
    pool = Candidates(keys, evidence.labels, evidence.target_distance, fell == PASSES)
    return Scores(pool, evidence, fell, table["nearest_real_distance"], table["topped_up"], places, num_real)
