"""The same images in several ways: image i has the same noise and the same class at every guidance, by every solver."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.synthesis import SampleConfig, SweepGuidanceConfig
from hdtrain.distributed.collectives import barrier
from hdtrain.distributed.world import World
from hdtrain.features.parts import Parts
from hdtrain.formats.atomic import link_or_copy
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import is_complete
from hdtrain.progress import Progress
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.meter import metered
from hdtrain.sampling.plan import SamplePlan, Unit
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


def speed_part(name: str, unit: Unit) -> str:
    """Name of the part that says what a unit of a data set took."""
    return f"speed-{name}-{unit.number:06d}"


def generate_sets(
    title: str,
    source: ImageGenerator,
    configs: Mapping[str, SampleConfig],
    run: Path,
    classes: list[str] | None,
    metas: Mapping[str, dict[str, Any]],
    world: World,
    speeds: Parts | None = None,
) -> None:
    """Write this rank's share of the shards of every data set that are not there, then wait for the other ranks.

    Args:
        title: of the progress display.
        source: the models and the plan; its config is replaced by each data set's.
        configs: data set to its config, complete; they differ in guidance and solver alone.
        run: the run directory.
        classes: by label; None: the images have no labels.
        metas: what the samples of each data set say of themselves.
        world: who this rank is.
        speeds: takes a part a unit (`Meter.arrays`), which is there before its shard is; None: nothing is measured.
    """
    units = source.plan.units()
    everything = [
        (name, unit, path)
        for name in configs
        for unit, path in zip(units, shard_paths(run, name, source.plan), strict=True)
    ]

    def is_there(name: str, unit: Unit, path: Path) -> bool:
        return is_complete(path) and (speeds is None or speeds.has(speed_part(name, unit)))

    def make(name: str, unit: Unit, path: Path) -> None:
        generator = replace(source, config=configs[name])
        with metered(generator) as meter:

            def seen(made: list[int], _: np.ndarray) -> None:
                meter.batch_done()
                if speeds is not None:
                    speeds.write(speed_part(name, unit), meter.arrays())
                progress.update(len(made))

            write_unit(generator, unit, path, classes, metas[name], seen)

    todo = [item for item in world.share(everything) if not is_there(*item)]
    total = sum(len(unit.indices) for _, unit, _ in todo)
    with Progress(title, total, enabled=world.is_main) as progress:
        for item in todo:
            make(*item)
    barrier()


def take_over(run: Path, parts: Path, names: Iterable[str]) -> list[Path]:
    """Images and scores of runs that were moved aside and that differ in what was chosen, or from what, alone.

    Args:
        run: the run directory.
        parts: its folder of parts, whose name says what images and scores depend on.
        names: the data sets that are wanted.

    Returns:
        The runs that some were taken from. Files are linked, where the file system can, and stay where they are.
    """
    found = []
    for earlier in [] if parts.exists() else sorted(run.parent.glob(f"{run.name}.previous-*")):
        scored = earlier / parts.relative_to(run)
        if not scored.exists():
            continue
        found.append(earlier)
        folders = [RunDir(earlier / name).shards for name in names]
        tars, sidecars = (
            [path for folder in folders for path in sorted(folder.glob(f"*.{e}"))] for e in ("tar", "json")
        )
        for path in [*tars, *sorted(scored.glob("*.npz")), *sidecars]:  # what says that a shard is whole comes last
            target = run / path.relative_to(earlier)
            if not target.exists():
                link_or_copy(path, target)
    return found
