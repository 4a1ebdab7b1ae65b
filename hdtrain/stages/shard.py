"""`hdtrain shard CONFIG --out RUN`: raw data sets to WebDataset image shards. Needs no torch and no GPU.

Publishes `RUN`; with several splits `RUN/SPLIT` for each of them and, last, `RUN` itself (kind `splits`).
"""

import shutil
import time
from collections.abc import Iterator

from hdtrain.config.shards import ShardConfig
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.formats.atomic import remove_temporaries
from hdtrain.stages.base import StageContext
from hdtrain.text import counted
from sharding.pack import Packed, pack, packed

_SHOWN_CLASSES = 20


def run(config: ShardConfig, context: StageContext) -> None:
    """Pack the sources and publish kind `images`."""
    start = time.monotonic()
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        pack(config, context.run, shared)
        if shared.publishes():
            _publish(packed(context.run), context, start)


def _publish(data_sets: list[Packed], context: StageContext, start: float) -> None:
    for data in data_sets:
        remove_temporaries(data.run.shards)
        context.publish(
            directory=data.run.path,
            kind="images",
            fields={"image": data.image},
            shards=data.shards,
            files=[data.run.index],
            split=data.name,
            classes=data.classes,
            info=data.info,
        )
    if len(data_sets) > 1:
        samples = {data.name: sum(shard.samples for shard in data.shards) for data in data_sets}
        classes = data_sets[0].classes
        context.publish(kind="splits", files=[context.run.index], classes=classes, info={"samples": samples})
    shutil.rmtree(context.run.work, ignore_errors=True)  # one that was taken for dead may still write there
    for data in data_sets:
        for line in class_lines(data):
            print(line)
    print(summary(data_sets, time.monotonic() - start))


def class_lines(data: Packed) -> Iterator[str]:
    """The classes and how many samples each has; a class without any is a warning."""
    counts: dict[str, int] = data.info["class_counts"]
    if not counts:
        return
    named = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN_CLASSES])
    yield f"{data.name}: {len(counts)} classes: {named}{' …' if len(counts) > _SHOWN_CLASSES else ''}"
    missing = [name for name, count in counts.items() if not count]
    if missing:
        yield f"warning: split '{data.name}' has no image of {', '.join(missing)}"


def summary(packed: list[Packed], seconds: float) -> str:
    """One line: how many of what, where they went, how long it took."""
    info = packed[0].info
    samples = [f"{sum(s.samples for s in data.shards):,} {data.name if len(packed) > 1 else 'ok'}" for data in packed]
    num_shards = sum(len(data.shards) for data in packed)
    megabytes = sum(shard.bytes for data in packed for shard in data.shards) / 1e6
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in info["rejected"].items())
    kept = info["num_duplicates"] - sum(n for reason, n in info["rejected"].items() if "duplicate" in reason)
    parts = [
        *samples,
        f"{info['num_rejected']:,} rejected" + (f" ({reasons})" if reasons else ""),
        *([f"{counted(kept, 'duplicate')} kept"] if kept else []),
        *(f"{count:,} {what}" for what in ("background", "unused") if (count := info[f"num_{what}"])),
        counted(num_shards, "shard"),
        f"{megabytes:,.1f} MB",
        f"{seconds:.1f} s",
    ]
    return "shard: " + ", ".join(parts)
