"""Embeddings as `hdtrain embed` publishes them, of whatever values a test wants."""

from pathlib import Path

import numpy as np

from hdtrain.data.embedding_index import write_index
from hdtrain.data.tile_places import TilePlaces
from hdtrain.formats.atomic import canonical_json, sha256_bytes, sha256_file
from hdtrain.formats.manifest import FieldSpec, Manifest, publish, read_manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import open_shards, shard_entry

ENCODER = {"name": "made-up", "weights": "none", "resize": "none", "resolution": 32, "dim": 6}


def write_embeddings(directory: Path, images: Path, tokens: int = 1, dim: int = 6, name: str = "made-up") -> Path:
    """One embedding for each of the labelled images: its class in the first two features, noise in the others."""
    rng, manifest = np.random.default_rng(0), read_manifest(images)
    encoder = {**ENCODER, "dim": dim, "name": name}
    (directory / "shards").mkdir(parents=True)
    entries = []
    for number, shard in enumerate(open_shards(images, manifest)):
        labels = [label or 0 for label in shard.sidecar.labels]
        values = rng.normal(0, 0.3, (len(labels), tokens, dim))
        values[np.arange(len(labels)), :, labels] += 2
        path = directory / "shards" / f"embeddings-{number:06d}.tar"
        write_record_shard(path, values.astype(np.float16), shard.sidecar.keys, shard.sidecar.labels, 4)
        entries.append(shard_entry(path, directory))
    index = directory / "index.parquet"
    parts = [directory / "shards" / Path(entry.name).name for entry in entries]
    write_index(index, parts, TilePlaces([(images, manifest)]), manifest.classes, {})
    info = {"encoder": encoder, "encoder_hash": sha256_bytes(canonical_json(encoder)), "tokens": tokens, "dim": dim}
    info["token_order"] = [f"view-{token}" for token in range(tokens)]
    field = FieldSpec(dtype="float16", shape=[tokens, dim], layout="token, feature; not normalised")
    kinds = {"kind": "embeddings", "stage": "embed", "fingerprint": name, "commit": ""}
    files = {index.name: sha256_file(index)}
    contents = {"fields": {"embedding": field}, "shards": entries, "files": files}
    publish(directory, Manifest(**kinds, **contents, classes=manifest.classes, info=info))
    return directory
