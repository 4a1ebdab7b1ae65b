"""Chosen samples into image shards of their own: bytes and metadata as they are, never re-encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdtrain.formats.shards import ShardReader, ShardWriter

SAMPLES_PER_SHARD = 1000


@dataclass(frozen=True)
class Place:
    """Where a candidate lies."""

    reader: ShardReader
    sample: int


@dataclass(frozen=True)
class OutputShard:
    """One shard to write."""

    path: Path
    places: Sequence[Place]


def plan_shards(directory: Path, places: Sequence[Place], keys: Sequence[str], seed: int) -> list[OutputShard]:
    """Cut the chosen samples into shards, in an order that mixes the classes and depends on keys and seed alone."""
    by_key = sorted(range(len(keys)), key=lambda row: keys[row])
    order = [by_key[i] for i in np.random.default_rng(seed).permutation(len(by_key))]
    return [
        OutputShard(
            directory / f"shard-{number:06d}.tar", [places[i] for i in order[first : first + SAMPLES_PER_SHARD]]
        )
        for number, first in enumerate(range(0, len(order), SAMPLES_PER_SHARD))
    ]


def write_shard(shard: OutputShard, process: str = "") -> None:
    """Copy the samples; shard and sidecar appear when they are whole. `process` as `writer` of `ShardWriter`."""
    with ShardWriter(shard.path, process) as writer:
        for place in shard.places:
            sidecar, i = place.reader.sidecar, place.sample
            image = bytes(place.reader.image(i))
            writer.add(sidecar.keys[i], sidecar.exts[i], image, place.reader.meta(i), sidecar.labels[i])
