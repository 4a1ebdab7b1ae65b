"""`hdtrain evaluate-slides CONFIG --out RUN`: attention-MIL on whole images, real against real and synthetic.

Publishes kind `slide-evaluation` with `RUN/results.json`.
"""

from functools import partial

import numpy as np

from hdtrain.config.slides import EvaluateSlidesConfig
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.evaluation.bags import Bag
from hdtrain.evaluation.downstream import METRICS, accuracy
from hdtrain.evaluation.mil import probabilities, train_mil
from hdtrain.evaluation.slide_arms import SlideArms, read_arms
from hdtrain.evaluation.statistics import ArmBootstrap, SplitBootstrap, interval_of, two_sided_p
from hdtrain.features.parts import Arrays, Parts, Unit
from hdtrain.formats.results import Metric
from hdtrain.formats.slide_results import SlideArm, SlideResults
from hdtrain.stages.base import StageContext
from hdtrain.text import table

_SHOWN = ("accuracy", "macro_f1")


def run(config: EvaluateSlidesConfig, context: StageContext) -> None:
    """Train every arm's classifiers, with all who share the run; one of them scores and publishes."""
    arms = read_arms(config)
    trainings = [
        Unit(
            f"arm-{number}-seed-{seed}",
            len(arms.test),
            partial(_train, arms.real[name] + arms.synthetic[name], arms, config, seed),
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
        results = _results(config, arms, found)
        results.write(context.run.results)
        context.publish(files=[context.run.results], classes=arms.classes)
        print(described(results))


def _train(bags: list[Bag], arms: SlideArms, config: EvaluateSlidesConfig, seed: int) -> Arrays:
    """What one classifier says of the test bags."""
    labels = [arms.classes.index(bag.label) for bag in bags]
    model = train_mil([bag.instances for bag in bags], labels, len(arms.classes), config.mil, seed)
    return {"probabilities": probabilities(model, [bag.instances for bag in arms.test])}


def _results(config: EvaluateSlidesConfig, bags: SlideArms, found: dict[str, np.ndarray]) -> SlideResults:
    test, classes = bags.test, bags.classes
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
        arms[name] = SlideArm(
            description=arm.description,
            num_real=len(bags.real[name]),
            num_synthetic=len(bags.synthetic[name]),
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
