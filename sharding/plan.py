"""Which sample goes where: drawing, shuffling, cutting into shards. Complete before the first byte is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hdtrain.config.shards import ShardConfig
from hdtrain.errors import DataError
from hdtrain.formats.atomic import canonical_json, sha256_bytes
from sharding.candidate import Candidate
from sharding.sampling import draw, draw_even
from sharding.survey import Verdict, reason_kind


@dataclass(slots=True)
class Sample:
    """A candidate with its verdict, its class and, once planned, its shard."""

    candidate: Candidate
    verdict: Verdict
    label: int | None
    status: str
    shard: str | None = None


@dataclass
class Shard:
    """What goes into one tar, in order."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


def choose(samples: Sequence[Sample], classes: list[str] | None, config: ShardConfig) -> None:
    """Mark what `sample` and `max_samples` do not draw as unused."""
    usable = [sample for sample in samples if sample.status == "ok"]
    counts = Counter(sample.label for sample in usable)
    empty = [name for label, name in enumerate(classes or []) if not counts[label]]
    if empty:
        raise DataError(f"empty class {', '.join(map(repr, empty))}: no usable image in it")
    drawn = list(range(len(usable)))
    if config.sample:
        drawn = draw_even([sample.label for sample in usable], classes, config.sample)
    if config.max_samples:
        drawn = draw(drawn, config.max_samples, (config.seed, 1))
    for position in set(range(len(usable))) - set(drawn):
        usable[position].status = "unused"


def plan(samples: Sequence[Sample], config: ShardConfig) -> list[Shard]:
    """Shuffle over the whole input and cut into shards; a rejected input is counted where it would have gone."""
    taken = [sample for sample in samples if sample.status in ("ok", "rejected")]
    if config.shuffle:
        order = np.random.Generator(np.random.PCG64([config.seed, 0])).permutation(len(taken))
        taken = [taken[position] for position in order.tolist()]
    shards = [Shard("shard-000000.tar")]
    for sample in taken:
        if sample.status == "rejected":
            shards[-1].failed[reason_kind(sample.verdict.reason)] += 1
            continue
        if len(shards[-1].samples) == config.samples_per_shard:
            shards.append(Shard(f"shard-{len(shards):06d}.tar"))
        shards[-1].samples.append(sample)
        sample.shard = shards[-1].name
    return shards


def plan_identity(shards: Sequence[Shard], config: ShardConfig) -> str:
    """Hash of everything that decides the shards' bytes, the content of the inputs included."""
    rows = [
        [
            shard.name,
            sorted(shard.failed.items()),
            [[sample_meta(s, config), s.verdict.sha256, s.verdict.ext] for s in shard.samples],
        ]
        for shard in shards
    ]
    return sha256_bytes(canonical_json([config.alpha, config.resize_px, rows]))


def sample_meta(sample: Sample, config: ShardConfig) -> dict[str, Any]:
    """`KEY.json`. Squashing a square image scales its mpp; that of another is no longer one number."""
    candidate, verdict = sample.candidate, sample.verdict
    width, height, mpp = verdict.width, verdict.height, candidate.mpp
    if config.resize_px:
        mpp = mpp * width / config.resize_px if mpp and width == height else None
        width = height = config.resize_px
    return {
        "key": candidate.key,
        "source": candidate.source,
        "slide": candidate.slide,
        "patient": candidate.patient,
        "x": candidate.x,
        "y": candidate.y,
        "mpp": mpp,
        "label": candidate.label,
        "class_index": sample.label,
        "split": config.split,
        "width": width,
        "height": height,
    }
