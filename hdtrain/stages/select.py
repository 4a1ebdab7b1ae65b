"""`hdtrain select CONFIG --out RUN`: keep, per class, the synthetic images nearest to their class's real centroid.

Publishes `RUN/selective-R` and `RUN/random-R` for every ratio R (image data sets of their own), `RUN/topped-up` where
candidates had to be added, `RUN/index.parquet` with one row a candidate, and, last, the selection's own manifest.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hdtrain.config.synthesis import SelectConfig
from hdtrain.distributed.collectives import device
from hdtrain.distributed.shared_work import SharedRun, shard_unit
from hdtrain.features.encoders import build_encoder
from hdtrain.features.parts import Parts
from hdtrain.features.store import FeatureStore
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import shard_entry
from hdtrain.sampling.top_up import Continuation
from hdtrain.selection.choose import choose_random, choose_selective
from hdtrain.selection.score import Dataset, Scorer, check_sets
from hdtrain.selection.table import counts_per_class, said_of, write_selection_index
from hdtrain.selection.top_up import top_up
from hdtrain.selection.write import OutputShard, plan_shards, write_shard
from hdtrain.stages.base import StageContext

TOPPED_UP = "topped-up"


def run(config: SelectConfig, context: StageContext) -> None:
    """Score, top up, choose, copy, publish."""
    real = [(path, context.manifest_of(path)) for path in config.real]
    candidates = [(path, context.manifest_of(path)) for path in config.candidates]
    check_sets(config, real, candidates)
    sampler = Continuation.of(*candidates[0]) if config.top_up else None
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        _select(config, context, shared, real, candidates, sampler)


def _select(
    config: SelectConfig,
    context: StageContext,
    shared: SharedRun,
    real: list[Dataset],
    candidates: list[Dataset],
    sampler: Continuation | None,
) -> None:
    encoder = build_encoder(config.encoder).to(device())
    parts, store = Parts.open(shared, context.fingerprint), FeatureStore.open(shared, config.features)
    scorer = Scorer.open(config, real, candidates, encoder, parts, store)
    classes, original = scorer.classes, scorer.add(candidates)
    pool, num_real = original.candidates, original.num_real
    # The random arm is drawn from what was sampled beforehand: no gate had a say in how many those are.
    random = {ratio: choose_random(pool, classes, num_real, ratio, config.seed) for ratio in config.ratios}
    scores, more = original, list[Path]()
    if sampler:
        make = sampler.maker(RunDir(context.run.path / TOPPED_UP).shards, shared)
        scores, more = top_up(config, scorer, original, sampler.config.batch_size, make)
    pool = scores.candidates
    selective = {ratio: choose_selective(pool, classes, num_real, ratio, config.shortfall) for ratio in config.ratios}
    chosen = {f"selective-{ratio:g}": scores.chosen(choice.rows) for ratio, choice in selective.items()}
    chosen |= {f"random-{ratio:g}": original.chosen(choice.rows) for ratio, choice in random.items()}
    plans = {
        name: plan_shards(RunDir(context.run.path / name).shards, places, keys, config.seed)
        for name, (places, keys) in chosen.items()
    }
    _write(plans, shared)
    folders = [RunDir(context.run.path / name).shards for name in (TOPPED_UP, *plans)]
    if not shared.publishes(*parts.folders, *store.folders, *folders):
        return

    def publish(name: str, shards: list[Path], info: dict[str, Any]) -> None:
        context.publish(
            directory=context.run.path / name,
            kind="images",
            classes=classes,
            split="synthetic",
            fields=candidates[0][1].fields,
            shards=[shard_entry(path, context.run.path / name) for path in shards],
            info=info,
        )

    per_class = counts_per_class(scores, classes, selective)
    if more:
        publish(TOPPED_UP, more, {"class_counts": {name: counts["topped_up"] for name, counts in per_class.items()}})
    for name, plan in plans.items():
        rule, ratio = name.split("-", 1)
        publish(name, [shard.path for shard in plan], {"rule": rule, "ratio": float(ratio)})
    write_selection_index(context.run.index, scores, classes, selective)
    info = {"ratios": config.ratios, "datasets": list(plans), "per_class": per_class, "encoder": encoder.name}
    info |= {"encoder_weights": encoder.weights_sha256, "topped_up": TOPPED_UP if more else None}
    context.publish(classes=classes, files=[context.run.index], info=info)
    print("\n".join(said_of(name, counts) for name, counts in per_class.items()))


def _write(plans: dict[str, list[OutputShard]], shared: SharedRun) -> None:
    """The chosen images, copied."""
    named = [(name, shard) for name, plan in plans.items() for shard in plan]
    units = [replace(shard_unit(each.path, len(each.places)), name=f"{name}-{each.path.name}") for name, each in named]
    shared.make_all("select: copying", units, lambda number, _: write_shard(named[number][1], shared.writer))
