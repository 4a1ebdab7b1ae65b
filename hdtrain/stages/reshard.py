"""`hdtrain reshard CONFIG --out RUN`: shards of another size or order. Needs no torch and no GPU."""

import shutil
from collections import Counter

from hdtrain.config.shards import ReshardConfig
from hdtrain.errors import ManifestError
from hdtrain.formats.shards import shard_entry
from hdtrain.stages.base import StageContext
from hdtrain.text import counted
from sharding.reshard import reshard


def run(config: ReshardConfig, context: StageContext) -> None:
    """Publish kind `images`, with what the parents say of classes, fields and split."""
    datasets = [(path, context.manifest_of(path)) for path in config.images]
    first = datasets[0][1]
    for path, manifest in datasets[1:]:
        if (manifest.classes, manifest.split) != (first.classes, first.split):
            raise ManifestError(
                f"{path} has split '{manifest.split}' and classes {manifest.classes}, {datasets[0][0]} has "
                f"'{first.split}' and {first.classes}; only data sets of one split and the same classes can be joined"
            )
    shards = reshard(config, datasets, context.run, context.world)
    if not context.world.is_main:
        return
    counts: Counter[str] = Counter()
    for _, manifest in datasets:
        counts.update(manifest.info.get("class_counts", {}))
    shapes = {tuple(manifest.fields["image"].shape) for _, manifest in datasets}
    image = first.fields["image"].model_copy(update={} if len(shapes) == 1 else {"shape": [None, None, 3]})
    context.publish(
        fields={"image": image},
        shards=[shard_entry(path, context.run.path) for path in shards],
        files=[context.run.index],
        split=first.split,
        classes=first.classes,
        info={**first.info, "class_counts": {name: counts[name] for name in first.classes or []}},
    )
    shutil.rmtree(context.run.work)
    total = sum(manifest.num_samples for _, manifest in datasets)
    print(f"reshard: {counted(total, 'sample')} in {counted(len(shards), 'shard')}")
