"""What is scored against what: checked before anything is computed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.data.exactly_once import decode_sample
from hdtrain.data.images import UNLABELLED
from hdtrain.errors import DataError, ManifestError
from hdtrain.evaluation.colour_histogram import BINS, colour_histograms
from hdtrain.features.parts import Arrays, Parts, shard_units
from hdtrain.formats.manifest import Manifest, ancestors
from hdtrain.formats.results import CANDIDATES, YARDSTICK
from hdtrain.formats.shards import ShardReader

Dataset = tuple[Path, Manifest]


@dataclass(frozen=True)
class Inputs:
    """Data sets and classifiers that fit each other."""

    classes: list[str]
    train: Dataset
    test: Dataset
    image_sets: dict[str, Dataset]
    """Arms' synthetic images by arm, the candidates, and the test split as the yardstick."""
    classifiers: dict[str, Dataset]
    """By arm."""

    @classmethod
    def open(cls, config: EvaluateConfig, manifests: Mapping[Path, Manifest]) -> "Inputs":
        """Check the parents against each other.

        Raises:
            ManifestError: classes differ, a classifier takes latents, the judge has seen synthetic images, or the test
                split is the training set.
        """

        def dataset(path: Path) -> Dataset:
            return path, manifests[path]

        train, test = dataset(config.train), dataset(config.test)
        classifiers = {name: dataset(arm.classifier) for name, arm in config.arms.items()}
        image_sets = {name: dataset(arm.synthetic) for name, arm in config.arms.items() if arm.synthetic}
        if config.candidates:
            image_sets[CANDIDATES] = dataset(config.candidates)
        judges = {"judge": dataset(config.judge)} if config.judge else {}
        classes = _shared_classes(
            {"train": train, "test": test, **_prefixed(image_sets), **_prefixed(classifiers), **judges}
        )
        for path, manifest in [*classifiers.values(), *judges.values()]:
            if manifest.info.get("kind") == "latent":
                raise ManifestError(
                    f"{path}: a classifier of latents cannot be scored on images; use kind image or timm"
                )
        for path, manifest in judges.values():
            if manifest.info.get("num_synthetic", 0) > 0:
                raise ManifestError(
                    f"judge {path} was trained on {manifest.info['num_synthetic']} synthetic images; "
                    "a judge must have seen real ones alone"
                )
        if train[1].identity == test[1].identity:
            raise ManifestError(f"{test[0]}: the test split holds the same images as the training set {train[0]}")
        return cls(classes, train, test, {**image_sets, YARDSTICK: test}, classifiers)


def arm_warnings(config: EvaluateConfig, inputs: Inputs) -> list[str]:
    """A warning where an arm's classifier was not trained on the synthetic images that are scored under its name."""
    return [
        f"arms.{name}: its classifier {inputs.classifiers[name][0]} was not trained on the images of {arm.synthetic}, "
        "so their figures say nothing of this arm"
        for name, arm in config.arms.items()
        if arm.synthetic
        and inputs.image_sets[name][1].identity
        not in {parent.identity for parent in inputs.classifiers[name][1].parents.values()}
    ]


def judge_warnings(config: EvaluateConfig, inputs: Inputs, manifests: Mapping[Path, Manifest]) -> list[str]:
    """A warning where the judge had a part in making the images that it judges (it is ϕ, or φ of D′)."""
    if config.judge is None:
        return []
    identity = manifests[config.judge].identity
    made = [
        name
        for name, dataset in inputs.image_sets.items()
        if name != YARDSTICK and identity in {entry for _, entry in ancestors(*dataset)}
    ]
    agreement = "agreement with it proves little; train another one"
    return [f"the judge had a part in making the images of {', '.join(made)}: {agreement}"] if made else []


def _prefixed(datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    return {f"{name} ({manifest.kind})": (path, manifest) for name, (path, manifest) in datasets.items()}


def _shared_classes(datasets: dict[str, Dataset]) -> list[str]:
    expected = datasets["train"][1].classes
    if not expected:
        raise ManifestError(f"{datasets['train'][0]}: the training images are unlabelled; evaluation needs classes")
    for name, (path, manifest) in datasets.items():
        if manifest.classes != expected:
            raise ManifestError(
                f"classes differ: {name} {path} has {', '.join(manifest.classes or ['none'])}; "
                f"train {datasets['train'][0]} has {', '.join(expected)}"
            )
    return expected


def describe_shard(reader: ShardReader) -> Arrays:
    """`histograms`, `groups` (patient, else slide, else empty) and `digests` of the encoded images of one shard."""
    sidecar = reader.sidecar
    metas = [reader.meta(i) for i in range(sidecar.samples)]
    # At their own size: a resized image has mixed colours at every edge, which tells of structure.
    histograms = [colour_histograms(decode_sample(reader, i)[None]) for i in range(sidecar.samples)]
    return {
        "keys": np.array(sidecar.keys, str),
        "labels": np.array([UNLABELLED if label is None else label for label in sidecar.labels], np.int64),
        "histograms": np.concatenate([np.empty((0, BINS**3), np.float32), *histograms]),
        "groups": np.array([str(meta.get("patient") or meta.get("slide") or "") for meta in metas], str),
        "digests": np.array(
            [hashlib.blake2b(reader.image(i), digest_size=16).hexdigest() for i in range(sidecar.samples)], str
        ),
    }


def describe(name: str, dataset: Dataset, parts: Parts) -> Arrays:
    """`describe_shard` of a whole labelled data set.

    Raises:
        DataError: no images, or some without a label.
    """
    units = shard_units(f"{name}-describe", dataset, describe_shard)
    parts.compute(f"evaluate: {name} colours", units)
    table = parts.load(units)
    if not table or (table["labels"] == UNLABELLED).any():
        raise DataError(f"{dataset[0]}: evaluation needs at least one image, and a label on every one")
    return table


def leaks(train: Arrays, test: Arrays) -> list[str]:
    """Warnings about slides that stand in both splits.

    Raises:
        DataError: a test image is byte for byte a training image.
    """
    same = np.isin(test["digests"], train["digests"])
    if same.any():
        raise DataError(
            f"{same.sum()} test images are byte for byte training images, the first is {test['keys'][same][0]}: "
            "split the data again, by patient"
        )
    shared = sorted(set(test["groups"][test["groups"] != ""]) & set(train["groups"]))
    if shared:
        return [f"{len(shared)} slides or patients stand in both train and test: {', '.join(shared[:5])}"]
    return []
