"""Features of images that go to the encoder's size from their own, in one step, as clean-fid and torch-fidelity do."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from hdtrain.data.exactly_once import decode_sample
from hdtrain.data.images import ImageBatch
from hdtrain.data.pool import UNLABELLED
from hdtrain.data.prefetch import Prefetcher
from hdtrain.data.threads import Threads
from hdtrain.features.encoders import Encoder
from hdtrain.features.store import FeatureSet, FeatureStore, shard_piece
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.read_files import PATIENCE_SEC
from hdtrain.formats.shards import ShardReader

OWN_SIZE = 0
"""Stands for the resolution in the names of features files."""
_DECODING_THREADS = 2


def embed_own_size(
    title: str, dataset: tuple[Path, Manifest], encoder: Encoder, store: FeatureStore, batch_size: int
) -> FeatureSet:
    """As `hdtrain.features.store.embed_dataset`, without a size that all images are brought to first.

    Raises:
        DataError: an image cannot be decoded.
        ShardError: a shard is missing or damaged.
    """
    directory, manifest = dataset
    pieces = [
        replace(shard_piece(directory, entry), batches=partial(_batches, directory / entry.name, entry, encoder))
        for entry in manifest.shards
    ]
    return store.embed(title, pieces, encoder, batch_size, OWN_SIZE)


def _batches(path: Path, entry: ShardEntry, encoder: Encoder, batch_size: int, _: int) -> Iterator[ImageBatch]:
    """Batches of one size as they are; others are resized one by one, to float images of the encoder's size."""
    reader, workers = ShardReader(path, retry_sec=PATIENCE_SEC), Threads(_DECODING_THREADS)
    labels = np.array([UNLABELLED if label is None else label for label in reader.sidecar.labels], np.int64)

    def load(part: range) -> list[UInt8[np.ndarray, "h w 3"]]:
        images: list[np.ndarray] = [np.empty(0)] * len(part)

        def decode(i: int) -> None:
            images[i] = decode_sample(reader, part[i])

        workers.each(decode, len(part))
        return images

    parts = [range(i, min(i + batch_size, entry.samples)) for i in range(0, entry.samples, batch_size)]
    try:
        for part, images in zip(parts, Prefetcher(load, parts), strict=True):
            same = len({image.shape for image in images}) == 1
            batch = np.stack(images) if same else _resized(images, encoder)
            yield ImageBatch(batch, reader.sidecar.keys[part.start : part.stop], labels[part.start : part.stop])
    finally:
        workers.close()


@torch.no_grad()
def _resized(images: list[UInt8[np.ndarray, "h w 3"]], encoder: Encoder) -> Float32[np.ndarray, "n r r 3"]:
    resized = [encoder._resized(torch.from_numpy(np.array(image))[None])[0] for image in images]
    return torch.stack(resized).permute(0, 2, 3, 1).numpy()
