"""The same images at several guidance scales: image i has the same noise and the same class at every one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hdtrain.config.synthesis import SampleConfig, SweepGuidanceConfig
from hdtrain.distributed.collectives import barrier
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import link_or_copy
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import is_complete
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import SamplePlan
from hdtrain.sampling.write import write_unit


def scale_configs(config: SweepGuidanceConfig) -> dict[str, SampleConfig]:
    """Data set to the config that `sample` would have, by rising scale: with this seed its first images are these.

    Shards hold one batch, so that there are enough of them for every rank.
    """
    return {
        name: SampleConfig(
            denoiser=config.denoiser,
            decoder=config.decoder,
            classifier=config.classifier,
            guidance=guidance,
            per_class=config.per_class,
            solver=config.solver,
            samples_per_shard=config.batch_size,
            batch_size=config.batch_size,
            clip_latents=config.clip_latents,
            seed=config.seed,
        )
        for name, guidance in sorted(zip(config.data_sets, config.guidances, strict=True), key=lambda pair: pair[1])
    }


def shard_paths(run: Path, name: str, plan: SamplePlan) -> list[Path]:
    """The shards of one data set, in order."""
    return [RunDir(run / name).shards / unit.name for unit in plan.units()]


def generate_scales(
    source: ImageGenerator,
    configs: Mapping[str, SampleConfig],
    run: Path,
    classes: list[str],
    metas: Mapping[str, dict[str, Any]],
    world: World,
) -> None:
    """Write this rank's share of the shards of every scale that are not there, then wait for the other ranks.

    Args:
        source: the models and the plan; its guidance is replaced by each scale's.
        configs: data set to its config.
        run: the run directory.
        classes: by label.
        metas: what the samples of each data set say of themselves.
        world: who this rank is.
    """
    units = source.plan.units()
    everything = [
        (name, unit, path)
        for name in configs
        for unit, path in zip(units, shard_paths(run, name, source.plan), strict=True)
    ]
    todo = [item for item in world.share(everything) if not is_complete(item[2])]
    total = sum(len(unit.indices) for _, unit, _ in todo)
    with Progress("sweep-guidance", total, enabled=world.is_main) as progress:
        for name, unit, path in todo:
            generator = replace(source, config=configs[name])
            write_unit(generator, unit, path, classes, metas[name], lambda made, _: progress.update(len(made)))
    barrier()


def take_over(run: Path, parts: Path) -> Path | None:
    """Images and scores of a run that was moved aside and that differs in the choice alone: `parts` names its work.

    Returns the run that they were taken from. Files are linked, where the file system can, and stay where they are.
    """
    if parts.exists():
        return None
    for earlier in sorted(run.parent.glob(f"{run.name}.previous-*")):
        scored = earlier / parts.relative_to(run)
        if not scored.exists():
            continue
        tars = sorted(earlier.glob("g-*/shards/*.tar"))
        sidecars = sorted(earlier.glob("g-*/shards/*.json"))
        for found in [*tars, *sidecars, *sorted(scored.glob("*.npz"))]:  # what says that a shard is whole comes last
            link_or_copy(found, run / found.relative_to(earlier))
        return earlier
    return None
