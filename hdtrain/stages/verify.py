"""`hdtrain verify CONFIG --out RUN`: check published image shards byte by byte. Needs no torch and no GPU."""

import shutil

from hdtrain.config.shards import VerifyConfig
from hdtrain.stages.base import StageContext
from hdtrain.text import counted
from sharding.verify import verify


def run(config: VerifyConfig, context: StageContext) -> None:
    """Check the shards and publish kind `verification`; every problem is in the one ShardError."""
    others = [(path, context.manifest_of(path)) for path in config.disjoint_from]
    figures = verify(config, context.manifest_of(config.images), others, context.run.work, context.world)
    if not context.world.is_main:
        return
    context.publish(info=figures)
    shutil.rmtree(context.run.work)
    samples, shards = counted(figures["num_samples"], "sample"), counted(figures["num_shards"], "shard")
    looked = "" if figures["num_looked_at"] == figures["num_samples"] else f" ({figures['num_looked_at']:,} looked at)"
    for path, counts in figures["compared_with"].items():
        compared = ", ".join(f"{mine:,} {name} with {theirs:,}" for name, (mine, theirs) in counts.items())
        print(f"verify: nothing in common with {path}; compared {compared}")
    print(f"verify: {samples}{looked} in {shards} {'is' if figures['num_samples'] == 1 else 'are'} whole")
