"""`hdtrain evaluate-slides CONFIG --out RUN`: attention-MIL on whole images, real against real and synthetic.

Publishes kind `slide-evaluation` with `RUN/results.json`.
"""

from functools import partial

import numpy as np

from hdtrain.config.slides import EvaluateSlidesConfig
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.errors import DataError
from hdtrain.evaluation.bags import Bag, read_bags, read_labels
from hdtrain.evaluation.downstream import METRICS, accuracy
from hdtrain.evaluation.mil import probabilities, train_mil
from hdtrain.evaluation.statistics import ArmBootstrap, SplitBootstrap, interval_of, two_sided_p
from hdtrain.features.parts import Arrays, Parts, Unit
from hdtrain.formats.results import Metric
from hdtrain.formats.slide_results import SlideArm, SlideResults
from hdtrain.stages.base import StageContext
from hdtrain.text import table

_SHOWN = ("accuracy", "macro_f1")


def run(config: EvaluateSlidesConfig, context: StageContext) -> None:
    """Train every arm's classifiers, with all who share the run; one of them scores and publishes."""
    labels = read_labels(config.labels) if config.labels else None
    test = read_bags(config.test, labels)
    real = {name: read_bags(arm.train, labels) for name, arm in config.arms.items()}
    made = {name: read_bags(arm.synthetic, labels) if arm.synthetic else [] for name, arm in config.arms.items()}
    classes = sorted({bag.label for bag in real[config.baseline]})
    _check(config, test, real, made, classes)
    trainings = [
        Unit(
            f"arm-{number}-seed-{seed}",
            len(test),
            partial(_train, real[name] + made[name], test, classes, config, seed),
        )
        for number, name in enumerate(config.arms)
        for seed in config.seeds
    ]
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        parts = Parts.open(shared, context.fingerprint)
        parts.compute("evaluate-slides", trainings)
        if not shared.publishes(*parts.folders):
            return
        each = [part["probabilities"] for part in parts.each(trainings)]
        found = dict(
            zip(config.arms, np.stack(each).reshape(len(config.arms), len(config.seeds), *each[0].shape), strict=True)
        )
        results = _results(config, test, classes, found, {n: (len(real[n]), len(made[n])) for n in config.arms})
        results.write(context.run.results)
        context.publish(files=[context.run.results], classes=classes)
        print(described(results))


def _train(bags: list[Bag], test: list[Bag], classes: list[str], config: EvaluateSlidesConfig, seed: int) -> Arrays:
    """What one classifier says of the test bags."""
    labels = [classes.index(bag.label) for bag in bags]
    model = train_mil([bag.instances for bag in bags], labels, len(classes), config.mil, seed)
    return {"probabilities": probabilities(model, [bag.instances for bag in test])}


def _check(
    config: EvaluateSlidesConfig,
    test: list[Bag],
    real: dict[str, list[Bag]],
    made: dict[str, list[Bag]],
    classes: list[str],
) -> None:
    """Refuse bags that are in training and test, classes that the baseline does not know, other encoders.

    Raises:
        DataError: says which.
    """
    if len(classes) < 2:
        raise DataError(f"arm '{config.baseline}' has bags of one class ({', '.join(classes)}); two are needed")
    tested = {bag.name for bag in test}
    everything = [("test", bag) for bag in test]
    for name in config.arms:
        everything += [(f"arm '{name}'", bag) for bag in real[name] + made[name]]
        if both := sorted(tested & {bag.name for bag in real[name]}):
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


def _results(
    config: EvaluateSlidesConfig,
    test: list[Bag],
    classes: list[str],
    found: dict[str, np.ndarray],
    counts: dict[str, tuple[int, int]],
) -> SlideResults:
    truth = np.array([classes.index(bag.label) for bag in test])
    bootstrap = SplitBootstrap(truth, np.full(len(test), ""), len(classes), config.bootstrap_resamples, config.seed)
    resampled = {
        name: ArmBootstrap(bootstrap, each.argmax(axis=2).astype(np.int64), name) for name, each in found.items()
    }
    values = {
        name: {key: METRICS[key](_confusions(truth, each, len(classes))).mean() for key in _SHOWN}
        for name, each in found.items()
    }
    arms = {}
    for name, arm in config.arms.items():

        def metric(value: float, drawn: np.ndarray) -> Metric:
            return Metric(
                value=float(value),
                interval=interval_of(drawn),
                n=len(test),
                seeds=config.seeds,
                method=bootstrap.method.replace("images", "slides"),
            )

        metrics = {key: metric(values[name][key], resampled[name].resampled(METRICS[key])) for key in _SHOWN}
        p_value = None
        if name != config.baseline:
            gains = resampled[name].resampled(accuracy) - resampled[config.baseline].resampled(accuracy)
            gain = values[name]["accuracy"] - values[config.baseline]["accuracy"]
            metrics["accuracy_gain"], p_value = metric(gain, gains), two_sided_p(gains)
        num_real, num_synthetic = counts[name]
        arms[name] = SlideArm(
            description=arm.description,
            num_real=num_real,
            num_synthetic=num_synthetic,
            metrics=metrics,
            p_value=p_value,
        )
    return SlideResults(
        classes=classes,
        baseline=config.baseline,
        num_test=len(test),
        arms=arms,
        predictions={
            name: {bag.name: each[:, i].tolist() for i, bag in enumerate(test)} for name, each in found.items()
        },
        encoder_hash=test[0].encoder_hash,
        protocol={"mil": config.mil.model_dump(), "seeds": config.seeds, "resamples": config.bootstrap_resamples},
    )


def _confusions(truth: np.ndarray, found: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.zeros((len(found), num_classes, num_classes))
    for seed, each in enumerate(found.argmax(axis=2)):
        np.add.at(counts[seed], (truth, each), 1)
    return counts


def described(results: SlideResults) -> str:
    """A table for the terminal."""
    rows = [["arm", "real", "synthetic", *_SHOWN, "gain", "p"]]
    for name, arm in results.arms.items():
        cells = [_cell(arm.metrics[key]) for key in _SHOWN]
        gain = _cell(arm.metrics["accuracy_gain"]) if "accuracy_gain" in arm.metrics else ""
        p = f"{arm.p_value:.3f}" if arm.p_value is not None else ""
        rows.append([name, str(arm.num_real), str(arm.num_synthetic), *cells, gain, p])
    return f"{results.num_test:,} test slides of {len(results.classes)} classes\n{table(rows)}"


def _cell(metric: Metric) -> str:
    low, high = metric.interval or (float("nan"),) * 2
    return f"{metric.value:.3f} [{low:.3f}, {high:.3f}]"
