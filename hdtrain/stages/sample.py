"""`hdtrain sample CONFIG --out RUN`: classifier-guided generation; the same images from any number of ranks."""

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import barrier, device, use_reproducible_kernels
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import FieldSpec
from hdtrain.formats.shards import is_complete, shard_entry
from hdtrain.models.autoencoder import check_same_latent_space, load_autoencoder, manifest_latent_space
from hdtrain.models.classifier import Classifier, load_classifier
from hdtrain.models.denoiser import load_denoiser
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import SamplePlan
from hdtrain.sampling.write import write_unit
from hdtrain.stages.base import StageContext


def run(config: SampleConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    classifier = _load_matching_classifier(config, context)
    classes = classifier.classes if classifier else None
    plan = SamplePlan(config.per_class, len(classes) if classes else 1, config.samples_per_shard)
    denoiser_info = context.manifest_of(config.denoiser).info
    source = ImageGenerator(
        config=config,
        plan=plan,
        denoiser=load_denoiser(config.denoiser, device()),
        decoder=load_autoencoder(config.decoder, device()).codec,
        classifier=classifier,
        schedule=NoiseSchedule(NoiseScheduleConfig(**denoiser_info["schedule"])),
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
        size = source.decoder.resolution
        context.publish(
            fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
            shards=[shard_entry(context.run.shards / unit.name, context.run.path) for unit in plan.units()],
            split="synthetic",
            classes=classes,
            info={"class_counts": dict.fromkeys(classes or [], config.per_class), "seed": config.seed, **common},
        )
        print(f"sampled {plan.num_images:,} images in {len(plan.units())} shards")


def _load_matching_classifier(config: SampleConfig, context: StageContext) -> Classifier | None:
    """ϕ, after all models were checked to live in one latent space and under one noise schedule."""
    space = manifest_latent_space(context.manifest_of(config.decoder))
    denoiser = context.manifest_of(config.denoiser)
    what = f"denoiser {config.denoiser}"
    check_same_latent_space(what, manifest_latent_space(denoiser), config.decoder, space)
    if config.classifier is None:
        return None
    manifest = context.manifest_of(config.classifier)
    if manifest.info["kind"] != "latent":
        raise ManifestError(f"{config.classifier} is a classifier of kind '{manifest.info['kind']}'; guidance needs ϕ")
    check_same_latent_space(f"classifier {config.classifier}", manifest_latent_space(manifest), config.decoder, space)
    if manifest.info["schedule"] != denoiser.info["schedule"]:
        raise ManifestError(f"{config.classifier} and {config.denoiser} were trained with different noise schedules")
    return load_classifier(config.classifier).to(device())
