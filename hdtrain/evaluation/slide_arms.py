"""The bags that every arm of `evaluate-slides` is trained on, and those that all are tested on. No torch."""

from dataclasses import dataclass

from hdtrain.config.slides import EvaluateSlidesConfig
from hdtrain.errors import DataError
from hdtrain.evaluation.bags import Bag, read_bags, read_labels


@dataclass(frozen=True)
class SlideArms:
    """Bags by arm."""

    test: list[Bag]
    real: dict[str, list[Bag]]
    synthetic: dict[str, list[Bag]]
    classes: list[str]
    """Those of the baseline's real bags, sorted."""


def read_arms(config: EvaluateSlidesConfig) -> SlideArms:
    """Read what `config` names.

    Raises:
        DataError: bags that are in training and test, classes that the baseline does not know, other encoders, one
            class alone; or as `hdtrain.evaluation.bags`.
        ManifestError: a run is not published.
    """
    labels = read_labels(config.labels) if config.labels else None
    test = read_bags(config.test, labels)
    real = {name: read_bags(arm.train, labels) for name, arm in config.arms.items()}
    synthetic = {name: read_bags(arm.synthetic, labels) if arm.synthetic else [] for name, arm in config.arms.items()}
    arms = SlideArms(test, real, synthetic, sorted({bag.label for bag in real[config.baseline]}))
    _check(config, arms)
    return arms


def _check(config: EvaluateSlidesConfig, arms: SlideArms) -> None:
    classes = arms.classes
    if len(classes) < 2:
        raise DataError(f"arm '{config.baseline}' has bags of one class ({', '.join(classes)}); two are needed")
    tested = {bag.name for bag in arms.test}
    everything = [("test", bag) for bag in arms.test]
    for name in config.arms:
        everything += [(f"arm '{name}'", bag) for bag in arms.real[name] + arms.synthetic[name]]
        if both := sorted(tested & {bag.name for bag in arms.real[name]}):
            raise DataError(f"arm '{name}' is trained on {both[0]}, which is a test slide (and {len(both) - 1} more)")
    first = next((each for each in everything if each[1].encoder_hash), everything[0])
    for where, bag in everything:
        if bag.label not in classes:
            raise DataError(
                f"{where}: '{bag.name}' is of class {bag.label}, which arm '{config.baseline}' has no slide of; it has "
                f"{', '.join(classes)}"
            )
        if not bag.same_encoder(first[1]):
            raise DataError(
                f"{where}: {bag.run} ('{bag.name}') was embedded with another encoder than "
                f"{first[1].run} ({first[0]}); embed all with one encoder"
            )
