"""`hdtrain shard CONFIG --out RUN`: raw data sets to WebDataset image shards. Needs no torch and no GPU."""

import shutil
import time

from hdtrain.config.shards import ShardConfig
from hdtrain.stages.base import StageContext
from sharding.pack import Packed, pack


def run(config: ShardConfig, context: StageContext) -> None:
    """Pack the sources and publish kind `images`. One process does all of it, in threads."""
    if not context.world.is_main:
        return
    start = time.monotonic()
    packed = pack(config, context.run)
    context.publish(
        fields={"image": packed.image},
        shards=packed.shards,
        files=[context.run.index],
        split=config.split,
        classes=packed.classes,
        info=packed.info,
    )
    shutil.rmtree(context.run.work)
    print(summary(packed, time.monotonic() - start))


def summary(packed: Packed, seconds: float) -> str:
    """One line: how many of what, where they went, how long it took."""
    samples = sum(shard.samples for shard in packed.shards)
    megabytes = sum(shard.bytes for shard in packed.shards) / 1e6
    reasons = ", ".join(f"{count} {reason}" for reason, count in packed.rejected.items())
    parts = [
        f"{samples} ok",
        f"{packed.info['num_rejected']} rejected" + (f" ({reasons})" if reasons else ""),
        *(f"{count} {what}" for what in ("background", "unused") if (count := packed.info[f"num_{what}"])),
        f"{len(packed.shards)} shards",
        f"{megabytes:.1f} MB",
        f"{seconds:.1f} s",
    ]
    return "shard: " + ", ".join(parts)
