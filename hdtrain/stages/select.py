"""`hdtrain select CONFIG --out RUN`: keep, per class, the synthetic images nearest to their class's real centroid.

Publishes `RUN/selective-R` and `RUN/random-R` for every ratio R (image data sets of their own), `RUN/index.parquet`
with one row a candidate, and, last, the selection's own manifest.
"""

from hdtrain.config.synthesis import SelectConfig
from hdtrain.distributed.collectives import barrier, device
from hdtrain.features.encoders import build_encoder
from hdtrain.features.parts import Parts
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import shard_entry
from hdtrain.selection.choose import choose_random, choose_selective
from hdtrain.selection.score import score
from hdtrain.selection.table import counts_per_class, write_selection_index
from hdtrain.selection.write import plan_shards, write_shard
from hdtrain.stages.base import StageContext


def run(config: SelectConfig, context: StageContext) -> None:
    """Score, choose, copy, publish."""
    real = [(path, context.manifest_of(path)) for path in config.real]
    candidates = [(path, context.manifest_of(path)) for path in config.candidates]
    encoder = build_encoder(config.encoder).to(device())
    parts = Parts.open(context.run.path, context.fingerprint, context.world)
    scores = score(config, real, candidates, encoder, parts)
    classes = real[0][1].classes or []

    pool, num_real = scores.candidates, scores.num_real
    selective = {ratio: choose_selective(pool, classes, num_real, ratio, config.shortfall) for ratio in config.ratios}
    choices = {f"selective-{ratio:g}": choice for ratio, choice in selective.items()}
    choices |= {
        f"random-{ratio:g}": choose_random(pool, classes, num_real, ratio, config.seed) for ratio in config.ratios
    }
    plans = {
        name: plan_shards(
            RunDir(context.run.path / name).shards,
            [scores.places[row] for row in choice.rows],
            [str(pool.keys[row]) for row in choice.rows],
            config.seed,
        )
        for name, choice in choices.items()
    }
    for shard in context.world.share([shard for plan in plans.values() for shard in plan]):
        write_shard(shard)
    barrier()
    if not context.world.is_main:
        return

    for name, plan in plans.items():
        directory = context.run.path / name
        context.publish(
            directory=directory,
            kind="images",
            classes=classes,
            split="synthetic",
            fields=candidates[0][1].fields,
            shards=[shard_entry(shard.path, directory) for shard in plan],
            info={"rule": name.split("-")[0], "ratio": float(name.split("-", 1)[1])},
        )
    write_selection_index(context.run.index, scores, classes, selective)
    per_class = counts_per_class(scores, classes, selective)
    info = {"ratios": config.ratios, "datasets": list(plans), "per_class": per_class, "encoder": encoder.name}
    info["encoder_weights"] = encoder.weights_sha256
    context.publish(classes=classes, files=[context.run.index], info=info)
    for name, count in per_class.items():
        print(f"{name}: {count['passed']} of {count['candidates']} candidates pass, {count['real']} real images")
