"""From a `sample` config to its plan, and to the generator of its images."""

from typing import Any

import torch
from torch import nn

from hdtrain.config.ranges import parse_ranges
from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.collectives import device
from hdtrain.models.denoiser import load_denoiser
from hdtrain.sampling.embeddings import EmbeddingConditions
from hdtrain.sampling.fit import ManifestOf, check_embeddings, planned_counts, with_choices
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.models import load_decoder, load_guide
from hdtrain.sampling.plan import SamplePlan

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def open_plan(config: SampleConfig, manifest_of: ManifestOf) -> SamplePlan:
    """Which images the run makes, and in which shards.

    Raises:
        ConfigError: classes that the models do not know, or no image at all.
    """
    only = parse_ranges(config.images) if config.images is not None else None
    return SamplePlan(planned_counts(config, manifest_of), config.samples_per_shard, only)


def open_generator(config: SampleConfig, manifest_of: ManifestOf) -> ImageGenerator:
    """Every model on this rank's device, and the plan. What `guidance_from` and
    `solver_from` say stands in the generator's config.

    Args:
        config: of `sample`.
        manifest_of: the manifest of a parent by its path in `config`.

    Raises:
        ManifestError: the models do not fit each other, or what is asked of them.
    """
    config = with_choices(config, manifest_of)
    check_embeddings(config, manifest_of)
    info, dtype = manifest_of(config.denoiser).info, _DTYPES[config.precision]
    decoder, guide = load_decoder(config, manifest_of), load_guide(config, manifest_of)
    denoiser: Any = load_denoiser(config.denoiser, device())
    nn.Module.to(denoiser, dtype)
    if guide:
        guide.classifier.to(dtype)
    if config.precision == "fp64" and isinstance(decoder, nn.Module):
        decoder.double()
    return ImageGenerator(
        config=config,
        plan=open_plan(config, manifest_of),
        denoiser=denoiser,
        decoder=decoder,
        classifier=guide,
        schedule=NoiseSchedule(NoiseScheduleConfig(**info["schedule"])),
        prediction=info["prediction"],
        device=device(),
        embeddings=_open_embeddings(config, manifest_of),
        compiled=_compiled(denoiser) if config.compile else None,
    )


def _open_embeddings(config: SampleConfig, manifest_of: ManifestOf) -> EmbeddingConditions | None:
    if config.embeddings is None:
        return None
    path, latents = config.embeddings.run, config.embeddings.latents
    return EmbeddingConditions(
        config.embeddings, (path, manifest_of(path)), (latents, manifest_of(latents)) if latents else None
    )


def _compiled(denoiser: Any) -> Any:
    """Every batch has one shape, so nothing is compiled twice; on a GPU the launches become one CUDA graph."""
    mode = "reduce-overhead" if device().type == "cuda" else "default"
    return torch.compile(denoiser, mode=mode, dynamic=False)
