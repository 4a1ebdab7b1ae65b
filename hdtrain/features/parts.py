"""Exactly-once work on shards: one part file a shard, made by whoever claims it, skipped when there.

No collective: the processes may be of several jobs (`hdtrain.distributed.shared_work`). Whoever merges reads the parts
in the order of the units, so the result does not depend on how many made them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hdtrain.data.exactly_once import iterate_shard
from hdtrain.distributed.collectives import use_reproducible_kernels
from hdtrain.distributed.shared_work import SharedRun, SharedUnit
from hdtrain.distributed.transfer import to_device
from hdtrain.features.encoders import Encoder
from hdtrain.formats.atomic import atomic_file
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.shards import ShardReader
from hdtrain.models.classifier import Classifier

Arrays = dict[str, np.ndarray]
"""Arrays with one row a sample; `keys` and `labels` (−1: unlabelled) among them."""


@dataclass(frozen=True)
class Unit:
    """One shard's piece of work: the part's name, how many samples, and the work."""

    name: str
    samples: int
    compute: Callable[[], Arrays]


@dataclass(frozen=True)
class Parts:
    """Part files below a run directory. The fingerprint in the path keeps parts of another config apart."""

    directory: Path
    shared: SharedRun

    @classmethod
    def open(cls, shared: SharedRun, fingerprint: str) -> "Parts":
        """`RUN/parts/FINGERPRINT/`."""
        use_reproducible_kernels()
        return cls(shared.run.path / "parts" / fingerprint[:16], shared)

    @property
    def folders(self) -> list[Path]:
        """In which nobody else writes."""
        return [self.directory]

    def path(self, unit: Unit) -> Path:
        """The part's file."""
        return self.directory / f"{unit.name}.npz"

    def has(self, name: str) -> bool:
        """Whether a part is there."""
        return (self.directory / f"{name}.npz").exists()

    def read(self, name: str) -> Arrays:
        """A part."""
        with np.load(self.directory / f"{name}.npz") as archive:
            return {array: archive[array] for array in archive.files}

    def write(self, name: str, arrays: Arrays) -> None:
        """Publish a part."""
        with atomic_file(self.directory / f"{name}.npz", self.shared.writer) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    def compute(self, title: str, units: Sequence[Unit]) -> None:
        """Return when all parts are there, whoever made them."""
        shared = [SharedUnit(unit.name, unit.samples, (self.path(unit),)) for unit in units]
        self.shared.make_all(title, shared, lambda number, _: self.write(units[number].name, units[number].compute()))

    def each(self, units: Sequence[Unit], without: tuple[str, ...] = ()) -> Iterator[Arrays]:
        """The parts of `units` in that order, one in memory at a time, some arrays left out."""
        for unit in units:
            with np.load(self.path(unit)) as archive:
                yield {name: archive[name] for name in archive.files if name not in without}

    def load(self, units: Sequence[Unit], without: tuple[str, ...] = ()) -> Arrays:
        """The parts of `units`, concatenated in that order, some arrays left out."""
        parts = list(self.each(units, without))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def shard_units(name: str, dataset: tuple[Path, Manifest], compute: Callable[[ShardReader], Arrays]) -> list[Unit]:
    """One unit a shard of a published image data set; part names come from `name` and the shard's own name.

    A unit opens its shard when it computes, and lets it go afterwards: memory does not grow with the number of shards.
    """
    directory, manifest = dataset

    def on_shard(tar: Path) -> Arrays:
        return compute(ShardReader(tar, retry_sec=PATIENCE_SEC))

    return [
        Unit(f"{name}-{Path(entry.name).stem}", entry.samples, partial(on_shard, directory / entry.name))
        for entry in manifest.shards
    ]


def embed_shard(reader: ShardReader, encoder: Encoder, batch_size: int, resolution: int) -> Arrays:
    """`features` float32 (n, d) of one shard's images, seen at `resolution` first, not normalised.

    Raises:
        DataError: an image cannot be decoded; rows must be those of the sidecar, so none may be missing.
    """
    keys, labels, features = [], [], [np.empty((0, encoder.dim), np.float32)]
    for batch in iterate_shard(reader, batch_size, resolution):
        keys += batch.keys
        labels.append(batch.labels)
        features.append(encoder.embed(batch.images).cpu().numpy())
    return {"keys": np.array(keys, str), "labels": _concatenate(labels), "features": np.concatenate(features)}


@torch.no_grad()
def classify_shard(reader: ShardReader, classifiers: Sequence[Classifier], batch_size: int) -> Arrays:
    """`probabilities` float32 (n, len(classifiers), classes): softmax(logits / T) at the classifiers' own resolution.

    T is the temperature with which a classifier was calibrated, 1 where it was not.

    Raises:
        DataError: as `embed_shard`.
    """
    keys, labels, probabilities = [], [], []
    first = classifiers[0]
    device = next(first.parameters()).device
    for batch in iterate_shard(reader, batch_size, first.resolution, first.resize):
        x = to_device(batch.images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        keys += batch.keys
        labels.append(batch.labels)
        logits = [model(x).float() / float(getattr(model, "temperature", 1.0)) for model in classifiers]
        probabilities.append(torch.stack([each.softmax(1) for each in logits], 1).cpu().numpy())
    shape = (0, len(classifiers), len(first.classes))
    return {
        "keys": np.array(keys, str),
        "labels": _concatenate(labels),
        "probabilities": np.concatenate([np.empty(shape, np.float32), *probabilities]),
    }


def _concatenate(labels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *labels])
