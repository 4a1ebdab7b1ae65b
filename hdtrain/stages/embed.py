"""`hdtrain embed CONFIG --out RUN`: a frozen encoder's embedding of every image, exactly once, one part a shard.

The parts are made by ranks of any number of jobs (`hdtrain.distributed.shared_work`).
"""

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np

from hdtrain.config.embedding import EmbedConfig
from hdtrain.config.training import TimmEncoder
from hdtrain.data.broken import BrokenSamples
from hdtrain.data.decode import decode_rgb
from hdtrain.data.embedding_index import write_index
from hdtrain.data.exactly_once import ShardByShard
from hdtrain.data.images import shared_classes
from hdtrain.data.pool import OpenShard
from hdtrain.data.slide_mpp import slide_mpp
from hdtrain.data.tile_context import TileContext
from hdtrain.data.tile_places import TilePlaces
from hdtrain.data.whole_images import iterate_whole
from hdtrain.distributed.collectives import device, use_reproducible_kernels
from hdtrain.distributed.shared_work import SharedRun, shard_unit
from hdtrain.errors import DataError
from hdtrain.features.embedding import Embedder
from hdtrain.features.encoders import build_encoder
from hdtrain.features.views import View
from hdtrain.formats.manifest import FieldSpec, Manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardReader, Sidecar, shard_entry, sidecar_path
from hdtrain.stages.base import StageContext
from hdtrain.text import counted

_SHOWN_SLIDES = 20
_SHARDS_LOOKED_AT = 16


def run(config: EmbedConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    datasets = context.datasets(config.images)
    shared_classes(datasets)
    embedder = _embedder(config, datasets)
    shards = ShardByShard(datasets, config)
    parts = [context.run.shards / f"embeddings-{number:06d}.tar" for number in range(len(shards))]
    broken = BrokenSamples(sum(shards.samples), config.max_failed_share)
    units = [shard_unit(part, count) for part, count in zip(parts, shards.samples, strict=True)]
    with SharedRun.open(context.run, context.world, context.fingerprint, at_once=False) as shared:

        def make(number: int, shard: OpenShard[ShardReader]) -> None:
            _embed_shard(number, shard.reader, parts[number], embedder, config, broken, shared)

        shared.make_all("embed", units, make, shards.each)
        if shared.publishes(context.run.shards):
            _publish(config, context, embedder, datasets, parts, broken, shards)


def _embedder(config: EmbedConfig, datasets: list[tuple[Path, Manifest]]) -> Embedder:
    views = tuple(View.of(name) for name in config.views)
    places = TilePlaces(datasets)
    around = TileContext(datasets, places, config, config.context_cache_bytes) if config.has_context else None
    encoder = build_encoder(config.encoder).to(device())
    return Embedder(encoder, views, config.batch_size, places, around, config.threads)


def _embed_shard(
    number: int,
    reader: ShardReader,
    part: Path,
    embedder: Embedder,
    config: EmbedConfig,
    broken: BrokenSamples,
    shared: SharedRun,
) -> None:
    """One part: the embeddings of the images that can be decoded, and how many cannot."""
    records = [np.empty((0, *embedder.shape), np.float16)]
    keys: list[str] = []
    labels: list[int | None] = []
    size = config.resolution, config.resize
    for images in iterate_whole(reader, config.batch_size, config.threads, broken, *size):
        records.append(embedder.tokens(number, images))
        keys += [image.key for image in images]
        labels += [image.label for image in images]
        shared.saw(len(images))
    failed = broken.by_reason(reader.path)
    write_record_shard(part, np.concatenate(records), keys, labels, config.records_per_member, failed, shared.writer)


def _sizes(config: EmbedConfig, shards: ShardByShard) -> list[list[int]]:
    """Height and width of the images that are embedded, of the first of each shard."""
    if config.resolution:
        return [[config.resolution, config.resolution]]
    found = set()
    for _, shard in shards.each(range(min(len(shards), _SHARDS_LOOKED_AT))):
        with contextlib.suppress(DataError, IndexError):  # broken, or none
            found.add(decode_rgb(shard.reader.image(0)).shape[:2])
    return sorted([height, width] for height, width in found)


def _publish(
    config: EmbedConfig,
    context: StageContext,
    embedder: Embedder,
    datasets: list[tuple[Path, Manifest]],
    parts: list[Path],
    broken: BrokenSamples,
    shards: ShardByShard,
) -> None:
    failed: Counter[str] = Counter()
    for part in parts:
        failed.update(Sidecar.read(sidecar_path(part)).failed)
    if failed.total() > broken.limit:
        raise broken.too_many(failed.total(), "the logs of the attempts name them")
    classes = shared_classes(datasets)
    mpp = slide_mpp(embedder.places, shards, config.resolution)
    grids, off_lattice = write_index(context.run.index, parts, embedder.places, classes, mpp)
    entries = [shard_entry(part, context.run.path) for part in parts]
    spec = FieldSpec(dtype="float16", shape=list(embedder.shape), layout="token, feature; not normalised")
    context.publish(
        fields={"embedding": spec},
        shards=entries,
        files=[context.run.index],
        classes=classes,
        split=datasets[0][1].split,
        info={
            **embedder.info,
            "image_px": _sizes(config, shards),
            "grids": {grid.name: [grid.rows, grid.columns] for grid in grids},
            "off_lattice": off_lattice,
            "failed": dict(failed.most_common()),
        },
    )
    _say_grids([*map(str, grids)], off_lattice)
    tokens, dim = embedder.shape
    skipped = "".join(f"; skipped {counted(number, 'image')}: {reason}" for reason, number in failed.most_common())
    images = counted(sum(entry.samples for entry in entries), "image")
    if isinstance(config.encoder, TimmEncoder) and config.encoder.weights is None:
        print(f"warning: {embedder.encoder.name} has random weights; give encoder.weights=FILE")
    print(
        f"embedded {images} in {counted(len(entries), 'shard')}: {counted(tokens, 'token')} of {dim} features by "
        f"{embedder.encoder.name}{skipped}"
    )


def _say_grids(grids: list[str], off_lattice: dict[str, str]) -> None:
    """Which slides have a grid and which have none; and, once, what that means."""
    for lines in (grids, [f"warning: no grid: {why}" for why in off_lattice.values()]):
        for line in lines[:_SHOWN_SLIDES]:
            print(line)
        if len(lines) > _SHOWN_SLIDES:
            print(f"… and {counted(len(lines) - _SHOWN_SLIDES, 'slide')} more")
    if off_lattice:
        print(
            f"note: {counted(len(off_lattice), 'slide')} without a grid. The images are embedded all the same, and "
            "train-ldm, sample and evaluate-fidelity take them as they are; paint, train-prior and evaluate-slides "
            "want grids. Where tiles share a place, name every region a slide of its own (the group `slide` in the "
            "pattern of `shard`; `patient` keeps the slide, to split by), or embed one data set of one resolution"
        )
