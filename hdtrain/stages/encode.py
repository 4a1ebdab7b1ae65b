"""`hdtrain encode CONFIG --out RUN`: the posterior's mean and std of every image, exactly once, one part a shard."""

from collections.abc import Iterator

import numpy as np
import torch

from hdtrain.config.training import EncodeConfig
from hdtrain.data.images import iterate_shard, labelled_classes
from hdtrain.distributed.collectives import barrier, device, use_reproducible_kernels
from hdtrain.formats.manifest import FieldSpec
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardReader, is_complete, open_shards, shard_entry
from hdtrain.models.autoencoder import PublishedAutoencoder, load_autoencoder, to_unit_range
from hdtrain.progress import Progress
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import datasets_of


def run(config: EncodeConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    published = load_autoencoder(config.vae, device())
    datasets = datasets_of(context, config.images)
    shards = [shard for path, manifest in datasets for shard in open_shards(path, manifest)]
    parts = [(shard, context.run.shards / f"latents-{i:06d}.tar") for i, shard in enumerate(shards)]
    mine = [(shard, part) for shard, part in context.world.share(parts) if not is_complete(part)]
    total = sum(shard.sidecar.samples for shard, _ in mine) * (2 if config.flips else 1)
    with Progress("encode", total, enabled=context.world.is_main) as progress:
        for shard, part in mine:
            records, keys, labels = [], [], []
            for moments, batch_keys, batch_labels in _encode(shard, published, config):
                records.append(moments)
                keys += batch_keys
                labels += batch_labels
                progress.update(len(batch_keys))
            write_record_shard(part, np.concatenate(records), keys, labels, config.records_per_member)
    barrier()
    if context.world.is_main:
        entries = [shard_entry(part, context.run.path) for _, part in parts]
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
            },
        )
        print(f"encoded {sum(entry.samples for entry in entries):,} latents in {len(entries)} shards")


@torch.no_grad()
def _encode(
    shard: ShardReader, published: PublishedAutoencoder, config: EncodeConfig
) -> Iterator[tuple[np.ndarray, list[str], list[int | None]]]:
    codec, resize = published.codec, published.info["resize"]
    for batch in iterate_shard(shard, config.batch_size, codec.resolution, resize, config.threads):
        labels = [None if label < 0 else int(label) for label in batch.labels]
        x = to_unit_range(torch.from_numpy(batch.images).to(device()))
        for suffix, view in (("", x), *((("-flip", x.flip(3)),) if config.flips else ())):
            moments = torch.stack(codec.moments(view), dim=1)
            yield moments.half().cpu().numpy(), [key + suffix for key in batch.keys], labels
