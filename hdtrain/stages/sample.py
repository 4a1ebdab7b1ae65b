"""`hdtrain sample CONFIG --out RUN`: classifier-guided generation; the same images from any number of ranks."""

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import barrier, device, use_reproducible_kernels
from hdtrain.formats.manifest import FieldSpec
from hdtrain.formats.shards import is_complete, shard_entry
from hdtrain.models.denoiser import load_denoiser
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.models import load_decoder, load_guide
from hdtrain.sampling.plan import SamplePlan
from hdtrain.sampling.write import write_unit
from hdtrain.stages.base import StageContext


def run(config: SampleConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    info = context.manifest_of(config.denoiser).info
    decoder, classifier = load_decoder(config, context.manifest_of), load_guide(config, context.manifest_of)
    classes = classifier.classes if classifier else None
    plan = SamplePlan(config.per_class, len(classes) if classes else 1, config.samples_per_shard)
    source = ImageGenerator(
        config=config,
        plan=plan,
        denoiser=load_denoiser(config.denoiser, device()),
        decoder=decoder,
        classifier=classifier,
        schedule=NoiseSchedule(NoiseScheduleConfig(**info["schedule"])),
        prediction=info["prediction"],
        device=device(),
    )
    common = {
        "guidance": config.guidance if classifier else 0.0,
        "solver": f"{config.solver.kind}-{config.solver.steps}-eta{config.solver.eta:g}",
        **{name: manifest.identity[:16] for name, (_, manifest) in context.parents.items()},
    }
    todo = [u for u in context.world.share(plan.units()) if not is_complete(context.run.shards / u.name)]
    total = sum(unit.stop - unit.start for unit in todo)
    with Progress("sample", total, enabled=context.world.is_main) as progress:
        for unit in todo:
            write_unit(source, unit, context.run.shards / unit.name, classes, common, progress)
    barrier()
    if context.world.is_main:
        size = decoder.resolution
        context.publish(
            fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
            shards=[shard_entry(context.run.shards / unit.name, context.run.path) for unit in plan.units()],
            split="synthetic",
            classes=classes,
            info={"class_counts": dict.fromkeys(classes or [], config.per_class), "seed": config.seed, **common},
        )
        print(f"sampled {plan.num_images:,} images in {len(plan.units())} shards")
