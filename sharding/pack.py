"""Raw data sets to image shards: survey, draw, order, write, index.

The same input and config give byte-identical shards, whatever the number of threads and however often it was killed:
the plan is complete before the first shard is written, and a shard that is complete under the same plan is kept.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from hdtrain.formats.atomic import sha256_bytes, write_json
from hdtrain.formats.index import write_index
from hdtrain.formats.manifest import FieldSpec, ShardEntry
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, is_complete, shard_entry
from hdtrain.progress import track
from sharding.images import Pixels, UnusableError, decode, encode_png, resize
from sharding.plan import Sample, Shard, choose, plan, plan_identity, sample_meta
from sharding.sources import Inputs, collect
from sharding.survey import check_failures, survey


@dataclass(frozen=True)
class Packed:
    """What was written, for the manifest."""

    shards: list[ShardEntry]
    image: FieldSpec
    classes: list[str] | None
    info: dict[str, Any]
    rejected: dict[str, int]
    """Counts by reason."""


def pack(config: ShardConfig, run: RunDir, threads: int | None = None) -> Packed:
    """Write shards, sidecars and `index.parquet` into a run directory.

    Raises:
        DataError: see `collect`, `check_failures`, `draw_even`; or a file that changed since the survey.
    """
    threads = threads or len(os.sched_getaffinity(0))
    inputs = collect(config)
    verdicts = survey(inputs.candidates, config.alpha, run.work, threads)
    check_failures(inputs.candidates, verdicts, config.max_failed_share)
    label_of = {name: index for index, name in enumerate(inputs.classes or [])}
    samples = [
        Sample(candidate, verdict, label_of.get(candidate.label or ""), verdict.status)
        for candidate, verdict in zip(inputs.candidates, verdicts, strict=True)
    ]
    choose(samples, inputs.classes, config)
    shards = plan(samples, config)
    _drop_others(run, plan_identity(shards, config))
    total = sum(len(shard.samples) for shard in shards)
    with ThreadPoolExecutor(threads) as pool:
        for _ in track(_write_all(shards, config, run, pool), total, "pack"):
            pass
    write_index(run.index, (_index_row(sample, config.split) for sample in samples))
    return _summary(samples, shards, inputs, config, run)


def _drop_others(run: RunDir, identity: str) -> None:
    """Remove half-written files, and what is there of another plan; the shards that are left belong to this one."""
    path = run.work / "plan.json"
    same = path.exists() and json.loads(path.read_bytes()) == identity
    if not same:
        run.manifest.unlink(missing_ok=True)
    for file in run.shards.iterdir() if run.shards.exists() else ():
        if not same or file.name.startswith("."):
            file.unlink()
    write_json(path, identity)


def _write_all(shards: Sequence[Shard], config: ShardConfig, run: RunDir, pool: ThreadPoolExecutor) -> Iterator[Sample]:
    for shard in shards:
        path = run.shards / shard.name
        if is_complete(path):
            yield from shard.samples
            continue
        nearby = sorted(shard.samples, key=_place)  # tiles of one image one after another: it is decoded once a shard
        loaded = pool.map(lambda sample: _payload(sample, config), nearby)
        payloads = {}
        for sample, payload in zip(nearby, loaded, strict=True):
            payloads[sample.candidate.key] = payload
            yield sample
        with ShardWriter(path) as writer:
            writer.sidecar.failed = dict(sorted(shard.failed.items()))
            for sample in shard.samples:
                key = sample.candidate.key
                ext = "png" if config.resize_px else sample.verdict.ext or "png"
                writer.add(key, ext, payloads.pop(key), sample_meta(sample, config), sample.label)


def _place(sample: Sample) -> tuple[str, int, int]:
    tile = sample.candidate.tile
    return (str(sample.candidate.file), tile.top, tile.left) if tile else (str(sample.candidate.file), 0, 0)


def _payload(sample: Sample, config: ShardConfig) -> bytes:
    """The bytes to store: the original ones where nothing has to change."""
    candidate, verdict = sample.candidate, sample.verdict
    try:
        if candidate.tile:
            pixels: Pixels = candidate.tile.pixels()
            digest = sha256_bytes(pixels.tobytes())
        else:
            data = candidate.file.read_bytes()
            digest = sha256_bytes(data)
            if digest == verdict.sha256:
                if verdict.ext and not config.resize_px:
                    return data
                pixels = decode(data, config.alpha).pixels
    except (OSError, UnusableError) as error:
        raise DataError(f"{candidate.file}: could be read in the survey and no longer can: {error}") from None
    if digest != verdict.sha256:
        raise DataError(f"{candidate.file}: changed since the survey; run the stage again when the input is at rest")
    return encode_png(resize(pixels, config.resize_px) if config.resize_px else pixels)


def _index_row(sample: Sample, split: str) -> dict[str, Any]:
    candidate = sample.candidate
    names = ("key", "source", "path", "slide", "patient", "x", "y", "mpp", "label")
    return {name: getattr(candidate, name) for name in names} | {
        "split": split,
        "shard": sample.shard,
        "status": sample.status,
        "reason": sample.verdict.reason,
    }


def _summary(
    samples: Sequence[Sample], shards: Sequence[Shard], inputs: Inputs, config: ShardConfig, run: RunDir
) -> Packed:
    statuses = Counter(sample.status for sample in samples)
    packed = [sample_meta(sample, config) for shard in shards for sample in shard.samples]
    sizes = {(meta["height"], meta["width"]) for meta in packed}
    shape: list[int | None] = [*sizes.pop(), 3] if len(sizes) == 1 else [None, None, 3]
    counts = Counter(meta["label"] for meta in packed)
    return Packed(
        shards=[shard_entry(run.shards / shard.name, run.path) for shard in shards],
        image=FieldSpec(dtype="uint8", shape=shape, range=(0, 255), layout="HWC RGB"),
        classes=inputs.classes,
        info={
            "class_counts": {name: counts[name] for name in inputs.classes or []},
            "num_rejected": statuses["rejected"],
            "num_background": statuses["background"],
            "num_unused": statuses["unused"],
            "sources": inputs.names,
        },
        rejected=dict(sorted(sum((shard.failed for shard in shards), Counter[str]()).items())),
    )
