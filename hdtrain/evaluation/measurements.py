"""What is known of every image before it is scored: features, the judge's opinion, looks, nearest training images.

Every rank makes its share of the parts, one a shard; what a part holds depends on its shard and the training images
alone. Resident are the training images' features and small pixels, and one shard of queries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.evaluation.colour_statistics import appearance_shard
from hdtrain.evaluation.inputs import Dataset, Inputs
from hdtrain.evaluation.memorisation import MIN_REFERENCE, nearest_training_images
from hdtrain.features.encoders import Encoder
from hdtrain.features.parts import Arrays, Parts, Unit, classify_shard, embed_shard, shard_units
from hdtrain.formats.shards import ShardReader
from hdtrain.models.classifier import load_classifier

TRAIN = "train"
Families = dict[str, list[Unit]]
"""What is measured (features, looks, judge, near) to its units, one a shard."""


def measure_sets(
    config: EvaluateConfig, inputs: Inputs, encoder: Encoder, parts: Parts
) -> tuple[Arrays, dict[str, Arrays]]:
    """One row an image of the training images and of every set; what two names stand for is measured once.

    Columns: keys, labels, features, stain_statistics; with a judge probabilities; with enough training images those of
    `nearest_training_images`.
    """
    measure = _Measure.of(config, encoder, parts)
    named = {TRAIN: inputs.train, **inputs.image_sets}
    families = {path: measure.families(name, (path, manifest)) for name, (path, manifest) in named.items()}
    train = measure.table(families[inputs.train[0]])
    if len(train["labels"]) >= MIN_REFERENCE:
        for name, (path, manifest) in named.items():
            if "near" not in families[path]:
                own = path == inputs.train[0]
                families[path]["near"] = measure.near(name, (path, manifest), families[path], train, own)
    tables: dict[str, Arrays] = {}
    for name, (path, _) in named.items():
        same = next((other for other in tables if named[other][0] == path), None)
        tables[name] = tables[same] if same else measure.table(families[path])
        tables[name].pop("pixels", None)
    return tables[TRAIN], {name: tables[name] for name in inputs.image_sets}


@dataclass
class _Measure:
    parts: Parts
    shard_work: dict[str, Callable[[ShardReader], Arrays]]

    @classmethod
    def of(cls, config: EvaluateConfig, encoder: Encoder, parts: Parts) -> "_Measure":
        size, resolution = config.batch_size, config.resolution
        work: dict[str, Callable[[ShardReader], Arrays]] = {
            "features": partial(embed_shard, encoder=encoder, batch_size=size, resolution=resolution),
            "looks": partial(appearance_shard, batch_size=size, resolution=resolution, small_px=config.memorisation_px),
        }
        if config.judge:
            judge = load_classifier(config.judge).to(device())
            work["judge"] = partial(classify_shard, classifiers=[judge], batch_size=size)
        return cls(parts, work)

    def families(self, name: str, dataset: Dataset) -> Families:
        made = {}
        for family, work in self.shard_work.items():
            made[family] = shard_units(f"{family}-{dataset[1].identity[:16]}", dataset, work)
            self.parts.compute(f"evaluate: {family} of {name}", made[family])
        return made

    def near(self, name: str, dataset: Dataset, families: Families, train: Arrays, own: bool) -> list[Unit]:
        counts = [unit.samples for unit in families["features"]]
        starts = np.cumsum([0, *counts])

        def compute(number: int) -> Arrays:
            queries = self.parts.load([families["features"][number]]) | self.parts.load([families["looks"][number]])
            return nearest_training_images(queries, train, int(starts[number]) if own else None)

        name_of = f"near-{'own-' if own else ''}{dataset[1].identity[:16]}"
        units = [Unit(f"{name_of}-{i:06d}", count, partial(compute, i)) for i, count in enumerate(counts)]
        self.parts.compute(f"evaluate: nearest training images of {name}", units)
        return units

    def table(self, families: Families) -> Arrays:
        table: Arrays = {}
        for family, units in families.items():
            table |= self.parts.load(units)
            if family == "judge":
                table["probabilities"] = table["probabilities"][:, 0]
        return table
