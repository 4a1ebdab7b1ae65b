"""`hdtrain shard CONFIG --out RUN`: raw data sets to WebDataset image shards. Needs no torch and no GPU.

Publishes `RUN`; with several splits `RUN/SPLIT` for each of them and, last, `RUN` itself (kind `splits`).
"""

import shutil
import time

from hdtrain.config.shards import ShardConfig
from hdtrain.stages.base import StageContext
from sharding.pack import Packed, pack


def run(config: ShardConfig, context: StageContext) -> None:
    """Pack the sources and publish kind `images`."""
    start = time.monotonic()
    packed = pack(config, context.run, context.world)
    if not context.world.is_main:
        return
    for data in packed:
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
    if len(packed) > 1:
        samples = {data.name: sum(shard.samples for shard in data.shards) for data in packed}
        context.publish(kind="splits", files=[context.run.index], classes=packed[0].classes, info={"samples": samples})
    shutil.rmtree(context.run.work)
    print(summary(packed, time.monotonic() - start))


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
        *([f"{kept:,} duplicates kept"] if kept else []),
        *(f"{count:,} {what}" for what in ("background", "unused") if (count := info[f"num_{what}"])),
        f"{num_shards:,} shards",
        f"{megabytes:,.1f} MB",
        f"{seconds:.1f} s",
    ]
    return "shard: " + ", ".join(parts)
