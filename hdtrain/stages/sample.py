"""`hdtrain sample CONFIG --out RUN`: guided generation; the same images from any number of ranks and jobs."""

import shutil

from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.collectives import use_reproducible_kernels
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.errors import ConfigError
from hdtrain.formats.manifest import FieldSpec
from hdtrain.formats.shards import shard_entry
from hdtrain.sampling.describe import describe
from hdtrain.sampling.extend import take_over
from hdtrain.sampling.fit import classes_of, doubts_of_choices
from hdtrain.sampling.open import open_generator
from hdtrain.sampling.work import Worker
from hdtrain.stages.base import StageContext
from hdtrain.text import counted


def run(config: SampleConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    classes = classes_of(config, context.manifest_of)
    source = open_generator(config, context.manifest_of)
    context = context.following(source.config, *_released_code_has_no(config, context))
    plan, common = source.plan, describe(source.config, context.parents)
    if not plan.num_images:
        raise ConfigError("images", [f"images: {config.images} holds none of the images that per_class asks for"])
    if context.world.is_main:
        for doubt in doubts_of_choices(config, context.manifest_of):
            print(f"warning: {doubt}")
    units = plan.units()
    take_over(config, context.run, context.parents, units)
    with SharedRun.open(context.run, context.world, context.fingerprint, at_once=False) as shared:
        Worker(source, units, shared, classes, common).make_all()
        if shared.publishes(context.run.shards):
            size, counts = source.decoder.resolution, source.class_counts(classes or [])
            context.publish(
                fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
                shards=[shard_entry(context.run.shards / unit.name, context.run.path) for unit in units],
                split="synthetic",
                classes=classes,
                info={"class_counts": counts, "seed": config.seed, **common},
            )
            shutil.rmtree(context.run.work, ignore_errors=True)
            print(f"sampled {counted(plan.num_images, 'image')} in {counted(len(units), 'shard')}")


def _released_code_has_no(config: SampleConfig, context: StageContext) -> list[str]:
    adapted = config.decoder and context.manifest_of(config.decoder).stage == "adapt-decoder"
    return ["decoder: adapted (plain)"] if config.protocol == "released_code" and adapted else []
