"""The two passes over the shards: sums of the real images' features by class, then scores of the candidates.

Features lie on disk, a file a shard (`hdtrain.features.store`), and so do the scores. In memory are one shard of
candidates with one shard of real images, and of every candidate its key and a handful of numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from hdtrain.config.synthesis import SelectConfig
from hdtrain.data.images import UNLABELLED, shared_classes
from hdtrain.errors import DataError, ManifestError
from hdtrain.features.centroids import Centroids, make_centroids
from hdtrain.features.encoders import Encoder
from hdtrain.features.neighbours import l2_normalise, nearest_in_blocks
from hdtrain.features.parts import Arrays, Parts, Unit
from hdtrain.features.store import FeatureSet, FeatureStore, Piece, embed_dataset, shard_piece
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.shards import ShardReader, shard_entry
from hdtrain.models.classifier import Classifier
from hdtrain.selection.choose import Candidates, check_pool
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
    shard: Int[np.ndarray, " n"]
    sample: Int[np.ndarray, " n"]
    """Where a candidate lies: number of its shard, and place in that."""
    readers: list[ShardReader]
    """By number of the shard."""
    num_real: list[int]

    def count(self, which: Bool[np.ndarray, " n"]) -> list[int]:
        """How many of those rows there are of each class."""
        return [int(n) for n in np.bincount(self.candidates.labels[which], minlength=len(self.num_real))]

    @property
    def per_class(self) -> list[int]:
        """Candidates of each class."""
        return self.count(np.ones(len(self.shard), bool))

    @property
    def passed(self) -> list[int]:
        """Those that pass the gates, of each class."""
        return self.count(self.candidates.passes)

    def chosen(self, rows: Int[np.ndarray, " m"]) -> tuple[list[Place], list[str]]:
        """Places and keys of some of the rows."""
        places = [Place(self.readers[self.shard[row]], int(self.sample[row])) for row in rows]
        return places, [str(self.candidates.keys[row]) for row in rows]


def check_classes(real: Sequence[Dataset], candidates: Sequence[Dataset]) -> list[str]:
    """The classes that all sets share.

    Raises:
        ManifestError: a set is unlabelled or named twice, two sets list different classes, candidates are not
            synthetic, or real images are.
    """
    for path, manifest in [*real, *candidates]:
        if not manifest.classes:
            raise ManifestError(
                f"{path}: its images have no classes; selection needs labelled real and synthetic images"
            )
    named = [path.resolve() for path, _ in [*real, *candidates]]
    twice = next((path for path in named if named.count(path) > 1), None)
    if twice:
        raise ManifestError(f"{twice} is named twice; name every set once")
    for path, manifest in real:
        if manifest.split == SYNTHETIC:
            raise ManifestError(f"real {path} holds synthetic images; centroids are those of the real training images")
    for path, manifest in candidates:
        if manifest.split != SYNTHETIC:
            raise ManifestError(
                f"candidates {path} are of the split '{manifest.split}', expected '{SYNTHETIC}': what is selected is "
                f"counted as synthetic; for another generator's images run `hdtrain shard` with split={SYNTHETIC}"
            )
    return shared_classes([*real, *candidates]) or []


def check_sets(config: SelectConfig, real: Sequence[Dataset], candidates: Sequence[Dataset]) -> None:
    """What can be refused before anything is embedded: sets that do not fit, and ratios that they cannot give.

    Raises:
        ManifestError: as `check_classes`.
        DataError: as `check_pool`, where the manifests say how many images of each class there are.
    """
    classes = check_classes(real, candidates)
    num_real, have = (_told_counts(sets, classes) for sets in (real, candidates))
    if num_real is None or have is None:
        return
    for ratio in config.ratios:
        check_pool(have, classes, num_real, ratio)


def _told_counts(sets: Sequence[Dataset], classes: Sequence[str]) -> list[int] | None:
    """Images of each class by the manifests; None where one does not say."""
    found = [manifest.info.get("class_counts") for _, manifest in sets]
    told = [each for each in found if each]
    return [sum(each.get(name, 0) for each in told) for name in classes] if len(told) == len(found) else None


@dataclass
class Scorer:
    """What candidates are scored by, and every table so far; the same in every process."""

    config: SelectConfig
    classes: list[str]
    encoder: Encoder
    classifier: Classifier | None
    parts: Parts
    store: FeatureStore
    centroids: Centroids
    real: list[FeatureSet]
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
        store: FeatureStore,
    ) -> "Scorer":
        """Check the sets and φ, then the first pass: centroids of the real images, shard by shard.

        Raises:
            ManifestError: sets or classifier do not fit each other.
            DataError: a class without real images.
        """
        classes = check_classes(real, candidates)
        classifier = load_gate(config, classes)
        title, size, resolution = "select: real features", config.batch_size, config.resolution
        features = [embed_dataset(title, dataset, encoder, store, size, resolution) for dataset in real]
        centroids = make_centroids("centroids", features, len(classes), parts)
        centroids.check(classes)
        return cls(config, classes, encoder, classifier, parts, store, centroids, features)

    def add(self, candidates: Sequence[Dataset]) -> Scores:
        """The second pass over published candidates, shard by shard; then all scores so far.

        Raises:
            DataError: no image, one without a label, or two of one key.
        """
        entries = [
            (f"candidates-{i}-{Path(entry.name).stem}", directory, entry)
            for i, (directory, manifest) in enumerate(candidates)
            for entry in manifest.shards
        ]
        pieces = {name: shard_piece(directory, entry) for name, directory, entry in entries}
        readers = [ShardReader(directory / entry.name, retry_sec=PATIENCE_SEC) for _, directory, entry in entries]
        return self._extend("select: candidates", pieces, readers, topped_up=False)

    def add_topped_up(self, shards: Sequence[Path]) -> Scores:
        """The same over shards that this run made itself and has yet to publish."""
        pieces = {f"topped-up-{path.stem}": shard_piece(path.parent, shard_entry(path, path.parent)) for path in shards}
        readers = [ShardReader(path, retry_sec=PATIENCE_SEC) for path in shards]
        return self._extend("select: topped up", pieces, readers, topped_up=True)

    def _extend(self, title: str, pieces: dict[str, Piece], readers: list[ShardReader], topped_up: bool) -> Scores:
        config = self.config
        features = self.store.embed(
            f"{title}, features", list(pieces.values()), self.encoder, config.batch_size, config.resolution
        )
        units = [
            Unit(name, piece.samples, partial(self._score, features, number, reader))
            for number, ((name, piece), reader) in enumerate(zip(pieces.items(), readers, strict=True))
        ]
        self.parts.compute(title, units)
        table = self.parts.load(units)
        if not table or not len(table["keys"]):
            raise DataError("the candidates' shards hold no image; run `hdtrain sample` first")
        table["shard"] = len(self._readers) + np.repeat(np.arange(len(readers)), features.samples)
        table["topped_up"] = np.full(len(table["keys"]), topped_up)
        self._tables.append(table)
        self._readers += readers
        merged = {name: np.concatenate([part[name] for part in self._tables]) for name in table}
        return _merge(config, merged, self._readers, [int(n) for n in self.centroids.counts])

    def _score(self, candidates: FeatureSet, number: int, reader: ShardReader) -> Arrays:
        keys, labels = candidates.pieces[number].listing()
        if (labels == UNLABELLED).any():
            raise DataError(
                f"{reader.path}: unlabelled candidates, expected a class of each; sample with a classifier or a "
                "class-conditional denoiser, or shard a folder with a sub-folder a class"
            )
        features = candidates.shard(number)
        distances = self.centroids.distances(features)
        real = (block for found in self.real for block in found.blocks())
        arrays = {
            "keys": np.array(keys, str),
            "labels": labels,
            "sample": np.arange(len(labels)),
            "target_distance": np.round(distances[np.arange(len(labels)), labels], DISTANCE_DECIMALS),
            "nearest_class": distances.argmin(axis=1),
            "nearest_real_distance": np.round(nearest_in_blocks(l2_normalise(features), real), DISTANCE_DECIMALS),
        }
        return arrays | (judge_shard(reader, self.classifier, self.config) if self.classifier else {})


def _merge(config: SelectConfig, table: Arrays, readers: Sequence[ShardReader], num_real: list[int]) -> Scores:
    order = np.argsort(table["keys"], kind="stable")
    table = {name: column[order] for name, column in table.items()}
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
    return Scores(
        pool,
        evidence,
        fell,
        table["nearest_real_distance"],
        table["topped_up"],
        table["shard"],
        table["sample"],
        list(readers),
        num_real,
    )
