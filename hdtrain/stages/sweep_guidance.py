"""`hdtrain sweep-guidance CONFIG --out RUN`: a few images at every guidance scale, scored, and one scale chosen.

Publishes `RUN/g-SCALE` (image data sets of their own), `RUN/sweep.json` with every figure, `RUN/sweep.svg`, and, last,
the sweep's own manifest, whose choice `hdtrain sample … guidance_from=RUN` takes.
"""

from hdtrain.config.synthesis import SweepGuidanceConfig
from hdtrain.distributed.collectives import barrier, device
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.evaluation.sweep import REAL, check_judge, embed_and_judge, format_table, score_sweep
from hdtrain.features.encoders import build_encoder
from hdtrain.features.parts import Parts
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.fingerprint import fingerprint
from hdtrain.formats.manifest import FieldSpec, read_manifest
from hdtrain.formats.shards import shard_entry
from hdtrain.models.classifier import load_classifier
from hdtrain.reporting.sweep import sweep_svg
from hdtrain.sampling.open import open_generator
from hdtrain.sampling.sweep import generate_sets, scale_configs, shard_paths, take_over
from hdtrain.stages.base import StageContext


def run(config: SweepGuidanceConfig, context: StageContext) -> None:
    """Sample, score, choose, publish."""
    classes = check_judge(config, dict(context.parents.values()))
    # Another choice is another run, but no other images and figures.
    work = fingerprint("sweep-guidance", config.model_copy(update={"choice": None, "tolerance": 0.0}), context.parents)
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        _run(config, context, Parts.open(shared, work), classes)


def _run(config: SweepGuidanceConfig, context: StageContext, parts: Parts, classes: list[str]) -> None:
    manifests, directory = dict(context.parents.values()), context.run.path
    if context.world.is_main and (earlier := take_over(directory, parts.directory, config.data_sets)):
        print(f"images and scores are those of {', '.join(path.name for path in earlier)}")
    barrier()

    configs = scale_configs(config)
    source = open_generator(list(configs.values())[-1], context.manifest_of)
    models = {name: context.parents[name][1].identity[:16] for name in ("denoiser", "decoder", "classifier")}
    metas = {name: {"guidance": scale.guidance, **models} for name, scale in configs.items()}
    generate_sets("sweep-guidance", source, configs, directory, classes, metas, context.world)
    size = source.decoder.resolution
    for name, scale in configs.items():
        context.publish(
            directory=directory / name,
            kind="images",
            classes=classes,
            split="synthetic",
            fields={"image": FieldSpec(dtype="uint8", shape=[size, size, 3], range=(0, 255), layout="HWC RGB")},
            shards=[shard_entry(path, directory / name) for path in shard_paths(directory, name, source.plan)],
            info={"class_counts": dict.fromkeys(classes, scale.per_class), "seed": scale.seed, **metas[name]},
        )
    barrier()

    encoder = build_encoder(config.encoder).to(device())
    sets = {name: [(directory / name, read_manifest(directory / name))] for name in configs}
    sets[REAL] = [(path, manifests[path]) for path in config.real]
    tables = embed_and_judge(config, sets, encoder, load_classifier(config.judge), parts)
    if not parts.shared.publishes(*parts.folders):
        return
    sweep = score_sweep(config, manifests, classes, encoder, tables)
    sweep.write(context.run.sweep)
    write_bytes(directory / "sweep.svg", sweep_svg(sweep).encode())
    context.publish(
        classes=classes,
        files=[context.run.sweep, directory / "sweep.svg"],
        info={"choice": sweep.choice, "chosen_by": sweep.chosen_by, "datasets": list(configs)},
    )
    print(f"{format_table(sweep)}\nchosen: g = {sweep.choice:g}, by {sweep.chosen_by}. {sweep.reason}")
