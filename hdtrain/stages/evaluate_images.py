"""`hdtrain evaluate real=A fake=B encoder.kind=… --out RUN`: any images against any others, without a training run.

Raw images are packed into `RUN/packed/` first, so that ranks share them and a run that was killed goes on. Publishes
`RUN/real` and `RUN/fake` (kind `statistics`, which a later run may take as its `real`), and `RUN/results.json`.
"""

import shutil
from dataclasses import replace

from hdtrain.config.evaluation import SIDES, STATISTICS, EvaluateImagesConfig
from hdtrain.distributed.collectives import device
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.evaluation.compare import Figures
from hdtrain.evaluation.comparison_table import format_comparison
from hdtrain.evaluation.inputs import Dataset
from hdtrain.evaluation.label_agreement import LabelAgreement, check_judge, label_agreement
from hdtrain.evaluation.memorisation import MIN_REFERENCE
from hdtrain.evaluation.near_copies import NearCopies, find_near_copies
from hdtrain.evaluation.set_statistics import Sample, SetStatistics, made_with, write_statistics
from hdtrain.evaluation.sides import Side, check_sides
from hdtrain.features.encoders import Encoder, build_encoder
from hdtrain.features.parts import Parts
from hdtrain.features.store import FeatureStore
from hdtrain.formats.comparison import Comparison
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.stages.base import StageContext
from sharding.compared import kind_of, listed_images, pack_side, shard_config
from sharding.pack import packed


def run(config: EvaluateImagesConfig, context: StageContext) -> None:
    """Pack what is raw, embed, sum, compare, publish."""
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        encoder = build_encoder(config.encoder).to(device())
        made = made_with(encoder, config.resolution)
        store = FeatureStore.open(shared, config.features)
        real, fake = (open_side(name, config, context).read(encoder, made) for name in SIDES)
        judge = context.parents.get("judge")
        check_sides(config, real, fake)  # before anything is packed
        check_judge(judge, real, fake)
        real, fake = (_packed(side, config, context, shared) for side in (real, fake))
        warnings = check_sides(config, real, fake) + check_judge(judge, real, fake)
        real, fake = (side.measure(config, encoder, store) for side in (real, fake))
        parts = Parts.open(shared, context.fingerprint)
        agreement = label_agreement(config, judge, real, fake, parts)
        copies = None
        if config.memorisation and real.features is not None and fake.features is not None:
            copies = find_near_copies(real.features, fake.features, store, config.seed)
        if not shared.publishes(*parts.folders, *store.folders):
            return
        for side in (real, fake):
            _publish_statistics(side, context, made)
        comparison = _compare(config, encoder, real, fake, copies, warnings)
        if judge is not None:
            comparison = _with_agreement(comparison, judge, agreement)
        comparison.write(context.run.results)
        context.publish(files=[context.run.results], classes=list(comparison.per_class) or None)
        for warning in comparison.warnings:
            print(f"warning: {warning}")
        print(format_comparison(comparison))


def open_side(name: str, config: EvaluateImagesConfig, context: StageContext) -> Side:
    """What was given as `name`.

    Raises:
        DataError: raw data that is no images.
    """
    path = getattr(config, name)
    if name in context.parents:
        dataset = context.parents[name]
        kind = STATISTICS if dataset[1].kind == STATISTICS else "images"
        return Side(name, path, kind, dataset, dataset[1].classes)  # type: ignore[arg-type]
    if kind_of(path) == "moments":
        return Side(name, path, "moments")
    shards = shard_config(name, path, getattr(config, f"{name}_layout"), config.max_failed_share)
    return Side(name, path, "raw", classes=listed_images(name, shards)[1])


def _packed(side: Side, config: EvaluateImagesConfig, context: StageContext, shared: SharedRun) -> Side:
    """Raw images as a published data set below the run directory; what an earlier attempt packed is taken."""
    if side.kind != "raw":
        return side
    run = RunDir(context.run.path / "packed" / side.name)
    below = shared.below(run, f"packed-{side.name}")
    if not below.published:
        shards = shard_config(side.name, side.path, getattr(config, f"{side.name}_layout"), config.max_failed_share)
        with below.until_published():
            pack_side(side.name, shards, run, below)
            if below.publishes(run.shards):
                _publish_packed(run, context)
        below.await_published()
    manifest = read_manifest(run.path, ("images",))
    return replace(side, dataset=(run.path, manifest), classes=manifest.classes)


def _publish_packed(run: RunDir, context: StageContext) -> None:
    (data,) = packed(run)
    context.publish(
        directory=run.path,
        kind="images",
        fields={"image": data.image},
        shards=data.shards,
        files=[run.index],
        split=data.name,
        classes=data.classes,
        info=data.info,
    )
    shutil.rmtree(run.work, ignore_errors=True)


def _publish_statistics(side: Side, context: StageContext, made: dict[str, object]) -> None:
    """What was measured here, for later runs; what was given is published already."""
    statistics = side.statistics
    if side.features is None or not isinstance(statistics, SetStatistics):
        return
    directory = context.run.path / side.name
    context.publish(
        directory=directory,
        kind=STATISTICS,
        files=[write_statistics(directory, statistics)],
        classes=statistics.classes or None,
        info={
            "encoder": made,
            "num_images": statistics.moments.n,
            "num_kept": len(statistics.features),
            "seed": statistics.seed,
            "class_counts": statistics.class_counts,
            "image_shape": side.image_shape,
        },
    )


def _compare(
    config: EvaluateImagesConfig,
    encoder: Encoder,
    real: Side,
    fake: Side,
    copies: NearCopies | None,
    warnings: list[str],
) -> Comparison:
    figures = Figures(encoder.metric_name, config.kid_subset_size, config.seed)
    metrics = figures.whole(_whole(real), _whole(fake))
    per_class = {}
    if config.per_class and isinstance(real.statistics, SetStatistics) and isinstance(fake.statistics, SetStatistics):
        per_class = figures.by_class(real.statistics, fake.statistics) if fake.classes else {}
    protocol = figures.protocol()
    nearest = []
    if config.memorisation and copies is None:
        count = real.statistics.moments.n if isinstance(real.statistics, SetStatistics) else 0
        figures.left_out.append(f"memorised_share needs {MIN_REFERENCE} real images, there are {count}")
    if copies and real.features and fake.features:
        metrics["memorised_share"] = copies.metric()
        nearest = copies.pairs(fake.features, real.features)
        protocol["memorisation"] = {"threshold": copies.threshold, "next_nearest": copies.num_neighbours}
    return Comparison(
        real=real.described(),
        fake=fake.described(),
        metrics=metrics,
        per_class=per_class,
        nearest=nearest,
        encoder=made_with(encoder, config.resolution),
        protocol=protocol,
        left_out=figures.left_out,
        warnings=warnings + _doubts(encoder, real, fake),
    )


def _with_agreement(comparison: Comparison, judge: Dataset, agreement: LabelAgreement) -> Comparison:
    path, manifest = judge
    return comparison.model_copy(
        update={
            "metrics": comparison.metrics | agreement.metrics,
            "per_class": agreement.joined(comparison.per_class),
            "protocol": {**comparison.protocol, "judge": {"path": str(path), "identity": manifest.identity}},
            "left_out": comparison.left_out + agreement.left_out,
        }
    )


def _whole(side: Side) -> Sample:
    statistics = side.statistics
    assert statistics is not None
    return statistics.whole() if isinstance(statistics, SetStatistics) else Sample(None, statistics, None)


def _doubts(encoder: Encoder, real: Side, fake: Side) -> list[str]:
    """What should be known of the figures."""
    doubts = []
    if encoder.weights_sha256 == "random":
        doubts.append("the encoder has random weights: its figures are good for tests alone")
    for side in (real, fake):
        if side.kind == "moments":
            doubts.append(
                f"{side.name}: {side.path} does not say which encoder, weights and resize it was made with; the "
                "distance means something only if they are those of this run. It is the only figure: the others need "
                "features"
            )
    if real.dataset and fake.dataset and real.dataset[1].shards:
        hashes = [[shard.sha256 for shard in side.dataset[1].shards] for side in (real, fake) if side.dataset]
        if hashes[0] == hashes[1]:
            doubts.append("real and fake hold the same images")
    return doubts
