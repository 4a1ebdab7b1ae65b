"""`hdtrain verify CONFIG --out RUN`: check published image shards byte by byte. Needs no torch and no GPU."""

from hdtrain.config.shards import VerifyConfig
from hdtrain.stages.base import StageContext
from sharding.verify import verify


def run(config: VerifyConfig, context: StageContext) -> None:
    """Check the shards and publish kind `verification`; every problem is in the one ShardError."""
    if not context.world.is_main:
        return
    figures = verify(config.images, context.manifest_of(config.images), decode_images=config.decode)
    context.publish(info=figures)
    print(f"verify: {figures['num_samples']} samples in {figures['num_shards']} shards are whole")
