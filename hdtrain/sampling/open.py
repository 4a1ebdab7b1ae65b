"""From a `sample` config to the generator of its images."""

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.models.denoiser import load_denoiser
from hdtrain.sampling.fit import ManifestOf, classes_of, with_guidance
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.models import load_decoder, load_guide
from hdtrain.sampling.plan import SamplePlan, counts_of


def open_generator(config: SampleConfig, manifest_of: ManifestOf) -> ImageGenerator:
    """Every model on this rank's device, and the plan. What `guidance_from` says stands in the generator's config.

    Args:
        config: of `sample`.
        manifest_of: the manifest of a parent by its path in `config`.

    Raises:
        ManifestError: the models do not fit each other, or what is asked of them.
    """
    config, classes = with_guidance(config, manifest_of), classes_of(config, manifest_of)
    info = manifest_of(config.denoiser).info
    decoder, classifier = load_decoder(config, manifest_of), load_guide(config, manifest_of)
    return ImageGenerator(
        config=config,
        plan=SamplePlan(counts_of(config.per_class, classes), config.samples_per_shard),
        denoiser=load_denoiser(config.denoiser, device()),
        decoder=decoder,
        classifier=classifier,
        schedule=NoiseSchedule(NoiseScheduleConfig(**info["schedule"])),
        prediction=info["prediction"],
        device=device(),
    )
