"""`hdtrain sweep-solvers CONFIG --out RUN`: the same images by several solvers, scored, one chosen.

Publishes `RUN/SOLVER` (image data sets of their own), `RUN/solvers.json` with every figure, `RUN/solvers.svg`, and,
last, the sweep's own manifest, whose choice `hdtrain sample … solver_from=RUN` takes. `RUN/speed.json` lies beside it.
"""

from collections.abc import Mapping

import numpy as np
import torch

from hdtrain.config.solver_sweep import SweepSolversConfig
from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.collectives import barrier, device
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.evaluation.solver_sweep import TITLE, measure, real_moments, score_solvers, sweep_results
from hdtrain.features.encoders import build_encoder
from hdtrain.features.parts import Parts
from hdtrain.features.store import FeatureStore
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.fingerprint import fingerprint
from hdtrain.formats.manifest import FieldSpec, read_manifest
from hdtrain.formats.shards import shard_entry
from hdtrain.formats.solver_sweep import SolverSpeed, Speeds
from hdtrain.reporting.solver_sweep import format_choice, format_table, solvers_svg
from hdtrain.sampling.describe import describe
from hdtrain.sampling.fit import classes_of, guidance_of, with_choices
from hdtrain.sampling.fit_solvers import check, num_groups
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.meter import evaluations_an_image, images_per_sec
from hdtrain.sampling.open import open_generator
from hdtrain.sampling.sweep import generate_sets, shard_paths, speed_part, take_over
from hdtrain.stages.base import StageContext

MODELS = ("denoiser", "decoder", "classifier", "guidance_from")


def run(config: SweepSolversConfig, context: StageContext) -> None:
    """Sample, score, choose, publish."""
    check(config, context.manifest_of)
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        _run(config, context, Parts.open(shared, _work(config, context)))


def _run(config: SweepSolversConfig, context: StageContext, parts: Parts) -> None:
    directory, world = context.run.path, context.world
    if world.is_main and (earlier := take_over(directory, parts.directory, config.data_sets)):
        print(f"images and scores are those of {', '.join(path.name for path in earlier)}, as far as they are there")
    barrier()

    configs = {name: config.sample_config(solver) for name, solver in config.by_name.items()}
    configs = {name: with_choices(of, context.manifest_of) for name, of in configs.items()}
    source = open_generator(configs[config.reference.name], context.manifest_of)
    classes = classes_of(source.config, context.manifest_of)
    speeds = _generate(source, configs, parts, classes, context)

    encoder = build_encoder(config.encoder).to(device())
    store = FeatureStore.open(parts.shared)
    sets = {name: (directory / name, read_manifest(directory / name)) for name in configs}
    evaluations = {name: evaluations_an_image(took) for name, took in speeds.items()}
    measured = measure(config, sets, encoder, store, parts, evaluations)
    real = {path: context.manifest_of(path) for path in config.real}
    moments = real_moments(config, list(real.items()), encoder, store)
    if not parts.shared.publishes(*parts.folders, *store.folders):
        return

    groups, guidance = num_groups(config), guidance_of(source.config, context.manifest_of)
    solvers = score_solvers(config, measured, moments, encoder.metric_name("FD"), len(classes or [""]), groups)
    sweep = sweep_results(config, solvers, encoder, real, classes, {**guidance, "groups": groups})
    sweep.write(context.run.solvers)
    speed = _speeds(speeds, config)
    speed.write(context.run.speed)
    picture = directory / "solvers.svg"
    write_bytes(picture, solvers_svg(sweep).encode())
    context.publish(
        classes=classes,
        files=[context.run.solvers, picture],
        info={"choice": sweep.chosen.solver, "chosen_by": sweep.chosen_by, "datasets": list(configs), **guidance},
    )
    for warning in sweep.warnings:
        print(f"warning: {warning}")
    print(f"{format_table(sweep, speed)}\n{format_choice(sweep, speed)}")


def _work(config: SweepSolversConfig, context: StageContext) -> str:
    """What images and scores depend on. Another choice, or another list of solvers, is another run with the same."""
    free = ("choice", "tolerance", "groups", "reference", "solvers")
    same = {name: SweepSolversConfig.model_fields[name].default for name in free}
    return fingerprint(context.stage, config.model_copy(update=same), context.parents)


def _generate(
    source: ImageGenerator,
    configs: Mapping[str, SampleConfig],
    parts: Parts,
    classes: list[str] | None,
    context: StageContext,
) -> dict[str, dict[str, np.ndarray]]:
    """Make and publish the data sets; every rank gets what their batches took, by data set."""
    directory, plan = context.run.path, source.plan
    models = {name: context.parents[name] for name in MODELS if name in context.parents}
    metas = {name: describe(of, models) for name, of in configs.items()}
    generate_sets(TITLE, source, configs, directory, classes, metas, context.world, parts)
    size = source.decoder.resolution
    for name, of in configs.items():
        own = directory / name
        context.publish(
            directory=own,
            kind="images",
            classes=classes,
            split="synthetic",
            fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
            shards=[shard_entry(path, own) for path in shard_paths(directory, name, plan)],
            info={"class_counts": dict.fromkeys(classes or [], of.per_class), "seed": of.seed, **metas[name]},
        )
    barrier()
    took = {name: [parts.read(speed_part(name, unit)) for unit in plan.units()] for name in configs}
    return {
        name: {column: np.concatenate([unit[column] for unit in units]) for column in units[0]}
        for name, units in took.items()
    }


def _speeds(took: Mapping[str, Mapping[str, np.ndarray]], config: SweepSolversConfig) -> Speeds:
    rates = {name: images_per_sec(batches) for name, batches in took.items()}
    slow = rates[config.reference.name]
    return Speeds(
        device=torch.cuda.get_device_name(device()) if device().type == "cuda" else "CPU, one thread a rank",
        batch_size=config.batch_size,
        solvers={
            name: SolverSpeed(images_per_sec=rate, times_faster=rate / slow, batches=len(took[name]["seconds"]))
            for name, rate in rates.items()
        },
    )
