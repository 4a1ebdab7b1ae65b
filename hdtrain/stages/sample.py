"""`hdtrain sample CONFIG --out RUN`: guided generation; the same images from any number of ranks and jobs."""

import shutil

from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.collectives import use_reproducible_kernels
from hdtrain.distributed.stop import STOP
from hdtrain.errors import ConfigError
from hdtrain.formats.claims import Claims
from hdtrain.formats.manifest import FieldSpec
from hdtrain.formats.shards import shard_entry
from hdtrain.sampling.describe import describe
from hdtrain.sampling.extend import take_over
from hdtrain.sampling.fit import classes_of, doubts_of_choices
from hdtrain.sampling.open import open_generator
from hdtrain.sampling.work import Worker
from hdtrain.stages.base import StageContext


def run(config: SampleConfig, context: StageContext) -> None:
    """Run the stage."""
    STOP.install()
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
    with Claims(context.run.claims, context.world.rank) as claims:
        worker = Worker(source, units, context.run, context.world, claims, classes, common)
        worker.make_all()
        if context.world.is_main and worker.work.publishes():
            size, counts = source.decoder.resolution, dict(zip(classes or [], plan.class_counts, strict=False))
            context.publish(
                fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
                shards=[shard_entry(context.run.shards / unit.name, context.run.path) for unit in units],
                split="synthetic",
                classes=classes,
                info={"class_counts": counts, "seed": config.seed, **common},
            )
            print(f"sampled {plan.num_images:,} images in {len(units)} shards")
    if context.run.manifest.exists():
        shutil.rmtree(context.run.claims, ignore_errors=True)


def _released_code_has_no(config: SampleConfig, context: StageContext) -> list[str]:
    adapted = config.decoder and context.manifest_of(config.decoder).stage == "adapt-decoder"
    return ["decoder: adapted (plain)"] if config.protocol == "released_code" and adapted else []
