"""`hdtrain encode CONFIG --out RUN`: the posterior's mean and std of every image, exactly once, one part a shard.

The parts are made by processes of any number of jobs (`hdtrain.distributed.shared_work`).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hdtrain.config.training import EncodeConfig
from hdtrain.data.broken import BrokenSamples
from hdtrain.data.exactly_once import ShardByShard, iterate_shard
from hdtrain.data.images import labelled_classes
from hdtrain.data.pool import OpenShard
from hdtrain.distributed.collectives import device, use_reproducible_kernels
from hdtrain.distributed.shared_work import SharedRun, shard_unit
from hdtrain.distributed.transfer import to_device
from hdtrain.formats.manifest import FieldSpec, Manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardReader, Sidecar, shard_entry, sidecar_path
from hdtrain.models.autoencoder import PublishedAutoencoder, load_autoencoder, to_unit_range
from hdtrain.stages.base import StageContext
from hdtrain.text import counted


def run(config: EncodeConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    published = load_autoencoder(config.vae, device())
    datasets = context.datasets(config.images)
    shards = ShardByShard(datasets, config)
    parts = [context.run.shards / f"latents-{number:06d}.tar" for number in range(len(shards))]
    broken = BrokenSamples(sum(shards.samples), config.max_failed_share)
    views = 2 if config.flips else 1
    units = [shard_unit(part, views * count) for part, count in zip(parts, shards.samples, strict=True)]
    with SharedRun.open(context.run, context.world, context.fingerprint, at_once=False) as shared:

        def make(number: int, shard: OpenShard[ShardReader]) -> None:
            _encode_shard(shard.reader, parts[number], published, config, broken, shared)

        shared.make_all("encode", units, make, shards.each)
        if shared.publishes(context.run.shards):
            _publish(config, context, published, datasets, parts, broken)


def _publish(
    config: EncodeConfig,
    context: StageContext,
    published: PublishedAutoencoder,
    datasets: list[tuple[Path, Manifest]],
    parts: list[Path],
    broken: BrokenSamples,
) -> None:
    failed = _failed(parts, broken)
    entries = [shard_entry(part, context.run.path) for part in parts]
    spec = FieldSpec(dtype="float16", shape=[2, *published.codec.latent_shape], layout="mean,std CHW, unscaled")
    context.publish(
        fields={"moments": spec},
        shards=entries,
        classes=labelled_classes(datasets) if all(m.classes for _, m in datasets) else None,
        split=datasets[0][1].split,
        info={
            "encoder_id": published.encoder_id,
            "latent_scale": published.info["latent_scale"],
            "flips": config.flips,
            "resolution": published.codec.resolution,
            "failed": failed,
        },
    )
    latents = sum(entry.samples for entry in entries)
    skipped = "".join(f"; skipped {counted(number, 'image')}: {reason}" for reason, number in failed.items())
    print(f"encoded {counted(latents, 'latent')} in {counted(len(entries), 'shard')}{skipped}")


def _encode_shard(
    reader: ShardReader,
    part: Path,
    published: PublishedAutoencoder,
    config: EncodeConfig,
    broken: BrokenSamples,
    shared: SharedRun,
) -> None:
    """One part: the latents of the images that can be decoded, and how many cannot."""
    records = [np.empty((0, 2, *published.codec.latent_shape), np.float16)]
    keys: list[str] = []
    labels: list[int | None] = []
    for moments, batch_keys, batch_labels in _encode(reader, published, config, broken):
        records.append(moments)
        keys += batch_keys
        labels += batch_labels
        shared.saw(len(batch_keys))
    failed = broken.by_reason(reader.path)
    write_record_shard(part, np.concatenate(records), keys, labels, config.records_per_member, failed, shared.writer)


@torch.no_grad()
def _encode(
    reader: ShardReader, published: PublishedAutoencoder, config: EncodeConfig, broken: BrokenSamples
) -> Iterator[tuple[np.ndarray, list[str], list[int | None]]]:
    codec, resize = published.codec, published.info["resize"]
    for batch in iterate_shard(reader, config.batch_size, codec.resolution, resize, config.threads, broken):
        labels = [None if label < 0 else int(label) for label in batch.labels]
        x = to_unit_range(to_device(batch.images))
        for suffix, view in (("", x), *((("-flip", x.flip(3)),) if config.flips else ())):
            moments = torch.stack(codec.moments(view), dim=1)
            yield moments.half().cpu().numpy(), [key + suffix for key in batch.keys], labels


def _failed(parts: list[Path], broken: BrokenSamples) -> dict[str, int]:
    """Images that gave no latent, by reason, over all ranks and attempts.

    Raises:
        DataError: there are more than `max_failed_share` allows.
    """
    failed: Counter[str] = Counter()
    for part in parts:
        failed.update(Sidecar.read(sidecar_path(part)).failed)
    if failed.total() > broken.limit:
        raise broken.too_many(failed.total(), "the logs of the attempts name them")
    return dict(failed.most_common())
