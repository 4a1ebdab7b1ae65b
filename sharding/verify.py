"""Check a published image data set against its manifest, its sidecars and itself; collect every problem.

Any number of processes share the shards; of every sample 8 bytes are kept, to find keys that come twice.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hdtrain.config.shards import VerifyConfig
from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.world import World
from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file, write_json
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.npy import write_npy
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import Sidecar, sidecar_path
from hdtrain.progress import track
from sharding.inputs import key_hash
from sharding.leaks import comparable, find_leaks
from sharding.sampling import draw_samples
from sharding.verify_shard import check_shard

_NO_SAMPLE = np.empty(0, np.uint64)


def verify(
    config: VerifyConfig,
    manifest: Manifest,
    others: Sequence[tuple[Path, Manifest]],
    work: Path,
    world: World | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Check an artefact of kind `images`; every process of `world` calls it.

    Returns:
        `num_samples`, `num_shards`, `num_looked_at`, `bytes` and `class_counts`; empty on ranks other than 0.

    Raises:
        ShardError: on rank 0, with one line for every problem found.
    """
    world = world or World()
    threads = threads or max(1, len(os.sched_getaffinity(0)) // world.size)
    with Rendezvous(work / "processes", world) as meeting, ThreadPoolExecutor(threads) as pool:
        _check_share(config, manifest, work, world, pool)
        meeting.barrier("checked")
        return _merge(config, manifest, others, work, world) if world.is_main else {}


def _check_share(config: VerifyConfig, manifest: Manifest, work: Path, world: World, pool: ThreadPoolExecutor) -> None:
    """Every `world.size`-th shard: problems, counts and hashes of keys, left in `work`."""
    owners = {entry.sha256: entry.name for entry in manifest.shards}
    chosen = _draw(config, manifest)
    mine = list(world.share(list(enumerate(manifest.shards))))
    found: dict[str, list[str]] = {}
    labels: Counter[int | None] = Counter()
    hashes, shards, unread = [_NO_SAMPLE], [_NO_SAMPLE], []
    title = f"verify (1 of {world.size} processes)" if world.size > 1 else "verify"
    for number, entry in track(mine, len(mine), title, "shard") if world.is_main else mine:
        here = None if chosen is None else chosen.get(number, [])
        sidecar, found[str(number)] = check_shard(config.images, entry, manifest, owners, here, config.decode, pool)
        if sidecar is None:
            unread.append(entry.name)
            continue
        labels.update(sidecar.labels)
        hashes.append(np.array([key_hash(key) for key in sidecar.keys], np.uint64))
        shards.append(np.full(len(sidecar.keys), number, np.uint64))
    write_npy(work / f"keys-{world.rank}.npy", np.stack([np.concatenate(hashes), np.concatenate(shards)]))
    counts = [[label, count] for label, count in labels.items()]
    write_json(work / f"found-{world.rank}.json", {"problems": found, "labels": counts, "unread": unread})


def _draw(config: VerifyConfig, manifest: Manifest) -> dict[int, list[int]] | None:
    """Shard number to the samples to look at; None: everything."""
    if config.sample is None or config.sample >= manifest.num_samples:
        return None
    return draw_samples(manifest, config.sample, config.seed)


def _merge(
    config: VerifyConfig, manifest: Manifest, others: Sequence[tuple[Path, Manifest]], work: Path, world: World
) -> dict[str, Any]:
    found = [json.loads((work / f"found-{rank}.json").read_bytes()) for rank in range(world.size)]
    by_shard = {int(number): lines for part in found for number, lines in part["problems"].items()}
    problems = [line for number in sorted(by_shard) for line in by_shard[number]]
    unread = [name for part in found for name in part["unread"]]
    keys = np.concatenate([np.load(work / f"keys-{rank}.npy") for rank in range(world.size)], axis=1)
    problems += _check_keys(config.images, manifest, keys)
    problems += _check_files(config.images, manifest, keys[0], whole=not unread)
    labels = Counter(dict.fromkeys(range(len(manifest.classes or [])), 0))
    for part in found:
        labels.update({label: count for label, count in part["labels"] if label is not None})
    counts = {name: labels[index] for index, name in enumerate(manifest.classes or [])}
    published = manifest.info.get("class_counts")
    if not unread and published is not None and dict(published) != counts:
        problems.append(f"class counts in the shards are {counts}, the manifest says {published}")
    problems += find_leaks(config.images, manifest, others)
    listed = {entry.name for entry in manifest.shards}
    strays = [
        path for path in sorted(RunDir(config.images).shards.glob("*.tar")) if f"shards/{path.name}" not in listed
    ]
    problems += [f"{path}: not in the manifest, and would be read by whoever takes *.tar; remove it" for path in strays]
    if problems:
        plural = "s" if len(problems) > 1 else ""
        raise ShardError("\n  ".join([f"{config.images}: {len(problems)} problem{plural} in the shards", *problems]))
    return {
        "num_samples": manifest.num_samples,
        "num_shards": len(manifest.shards),
        "num_looked_at": min(config.sample or manifest.num_samples, manifest.num_samples),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "class_counts": counts,
        "compared_with": {str(path): comparable(config.images, path) for path, _ in others},
    }


def _check_keys(directory: Path, manifest: Manifest, keys: NDArray[np.uint64]) -> Iterator[str]:
    """Keys that come twice: equal hashes lead to the shards, where the keys themselves are compared."""
    values, counts = np.unique(keys[0], return_counts=True)
    suspects = np.unique(keys[1][np.isin(keys[0], values[counts > 1])])
    seen: dict[str, str] = {}
    for number in suspects.tolist():
        name = manifest.shards[number].name
        for key in Sidecar.read(sidecar_path(directory / name)).keys:
            if key in seen:
                yield f"key {key} is in {seen[key]} and again in {name}"
            seen[key] = name


def _check_files(directory: Path, manifest: Manifest, packed: NDArray[np.uint64], whole: bool) -> Iterator[str]:
    """Files that the manifest names; the index has exactly the samples of the shards."""
    for name, digest in manifest.files.items():
        path = directory / name
        if not path.exists():
            yield f"{path}: missing"
        elif sha256_file(path) != digest:
            yield f"{path}: altered since it was published"
        elif path == RunDir(directory).index and whole:
            hashes = [np.array([key_hash(key) for key in keys], np.uint64) for keys in _ok_keys(path)]
            differing = np.setxor1d(np.concatenate([_NO_SAMPLE, *hashes]), packed)
            if len(differing):
                wrong = set(differing.tolist())
                found = (key for keys in _ok_keys(path) for key in keys if key_hash(key) in wrong)
                first = next(found, "one that the index lacks")
                yield f"{path}: its ok rows and the shards differ in {len(differing)} keys, first {first}"


def _ok_keys(index: Path) -> Iterator[list[str]]:
    """The keys of the rows that are in shards, batch by batch."""
    for batch in pq.ParquetFile(index).iter_batches(columns=["key", "status"]):
        yield batch.filter(pc.equal(batch.column("status"), "ok")).column("key").to_pylist()
