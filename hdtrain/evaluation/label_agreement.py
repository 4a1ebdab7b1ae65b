"""Label agreement of two sets of images: whether `fake` shows what it is labelled with, and `real` as the yardstick."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from hdtrain.config.evaluation import EvaluateImagesConfig
from hdtrain.data.images import UNLABELLED
from hdtrain.distributed.collectives import device
from hdtrain.errors import ManifestError
from hdtrain.evaluation.compare import Metrics
from hdtrain.evaluation.inputs import Dataset
from hdtrain.evaluation.judge import agreement_metric, judge_units, refuse_latents
from hdtrain.evaluation.sides import Side, listed_classes
from hdtrain.features.parts import Parts
from hdtrain.formats.manifest import ancestors
from hdtrain.formats.sweep import AGREEMENT
from hdtrain.models.classifier import load_classifier

AGREEMENT_REAL = f"{AGREEMENT}_real"
"""Of the real images: what the judge itself reaches."""
_FIGURES = {"fake": AGREEMENT, "real": AGREEMENT_REAL}


@dataclass
class LabelAgreement:
    """The figures of both sets."""

    metrics: Metrics = field(default_factory=dict)
    """label_agreement, and label_agreement_real where real images are labelled."""
    per_class: dict[str, Metrics] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def joined(self, per_class: dict[str, Metrics]) -> dict[str, Metrics]:
        """Figures by class, with these behind them; the classes keep their order."""
        return {
            name: per_class.get(name, {}) | self.per_class.get(name, {}) for name in {**per_class, **self.per_class}
        }


def check_judge(judge: Dataset | None, real: Side, fake: Side) -> list[str]:
    """Warnings about a judge that is not independent of the images; none without a judge.

    Raises:
        ManifestError: the judge takes latents, `fake` is no images or has no labels, or a labelled set of images has
            other classes than the judge.
    """
    if judge is None:
        return []
    path, manifest = judge
    refuse_latents(path, manifest)
    if not _is_images(fake):
        raise ManifestError(
            f"fake: {fake.path} is statistics, and the judge looks at the images themselves; give those, or judge=null"
        )
    if not fake.classes:
        raise _unlabelled(fake)
    for side in (fake, real):
        if _is_images(side) and side.classes and set(side.classes) != set(manifest.classes or []):
            raise ManifestError(
                f"classes differ: {side.name} {side.path} has {listed_classes(side.classes)}; judge {path} has "
                f"{listed_classes(manifest.classes or ['none'])}; give a judge of these classes, or judge=null"
            )
    return _doubts(judge, real, fake)


def without_yardstick(real: Side) -> str | None:
    """Why there is no label agreement of `real`; None: there is one."""
    if not _is_images(real):
        return f"{AGREEMENT_REAL} needs the images themselves, and real {real.path} is statistics"
    return None if real.classes else f"{AGREEMENT_REAL} needs labels, and real {real.path} has none"


def label_agreement(
    config: EvaluateImagesConfig, judge: Dataset | None, real: Side, fake: Side, parts: Parts
) -> LabelAgreement:
    """The judge's opinion of every image, a part a shard, and the figures; every process calls it.

    Raises:
        DataError: an image cannot be decoded.
        ManifestError: no image of `fake` has a label.
    """
    found = LabelAgreement()
    if judge is None:
        return found
    model = load_classifier(judge[0]).to(device())
    missing = without_yardstick(real)
    found.left_out += [missing] if missing else []
    for side in [fake] if missing else [fake, real]:
        assert side.dataset is not None
        units = judge_units(side.dataset, model, config.batch_size)
        parts.compute(f"judge on {side.name}", units)
        said = parts.load(units)
        _add(found, config, side, _as_labels(said["probabilities"][:, 0], model.classes, side), said["labels"])
    return found


def _add(
    found: LabelAgreement,
    config: EvaluateImagesConfig,
    side: Side,
    predicted: Int64[np.ndarray, " n"],
    labels: Int64[np.ndarray, " n"],
) -> None:
    figure, labelled = _FIGURES[side.name], labels != UNLABELLED
    if not labelled.all():
        found.left_out.append(f"{figure}: {(~labelled).sum():,} images of {side.name} have no label")
    if not labelled.any():
        if side.name == "fake":
            raise _unlabelled(side)
        return
    found.metrics[figure] = agreement_metric(predicted[labelled], labels[labelled])
    for label, name in enumerate(side.classes or []) if config.per_class else ():
        own = labels == label
        if own.any():
            found.per_class.setdefault(name, {})[figure] = agreement_metric(predicted[own], labels[own])


def _as_labels(probabilities: np.ndarray, classes: list[str], side: Side) -> Int64[np.ndarray, " n"]:
    """The most probable class as a label of the set, whose classes may stand in another order."""
    assert side.classes is not None
    return np.array([side.classes.index(name) for name in classes])[probabilities.argmax(axis=1)]


def _doubts(judge: Dataset, real: Side, fake: Side) -> list[str]:
    path, manifest = judge
    doubts = []
    if count := manifest.info.get("num_synthetic", 0):
        doubts.append(
            f"judge {path} was trained on {count:,} synthetic images, and may agree with a generator's mistakes; a "
            "judge should have seen real ones alone"
        )
    if fake.kind == "images" and fake.dataset and manifest.identity in {entry for _, entry in ancestors(*fake.dataset)}:
        doubts.append(
            "the judge had a part in making the images of fake: agreement with it proves little; train another one"
        )
    seen = {entry for _, entry in ancestors(*judge)}
    known = [side.name for side in (real, fake) if side.dataset and side.dataset[1].identity in seen]
    if known:
        doubts.append(
            f"the judge was trained with the images of {' and '.join(known)}: its agreement there is higher than on "
            "images that it has not seen"
        )
    return doubts


def _is_images(side: Side) -> bool:
    return side.kind in ("images", "raw")


def _unlabelled(side: Side) -> ManifestError:
    return ManifestError(
        f"fake: {side.path} has no labels, and the judge's agreement is with labels; give a folder a class, or a data "
        "set with classes, or judge=null"
    )
