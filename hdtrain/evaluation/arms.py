"""Every arm's classifiers on the test split, and the colour-histogram control beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Int64

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.evaluation import colour_histogram
from hdtrain.evaluation.downstream import (
    CALIBRATION_BINS,
    CLASS_METRICS,
    METRICS,
    accuracy,
    calibration_error,
    confusion_matrix,
)
from hdtrain.evaluation.inputs import Dataset, Inputs
from hdtrain.evaluation.statistics import ArmBootstrap, Scorer, SplitBootstrap, interval_of, two_sided_p
from hdtrain.features.parts import Arrays, Parts, classify_shard, shard_units
from hdtrain.formats.results import ArmResult, Metric
from hdtrain.models.classifier import load_classifier

AUGMENTATION = "augment"
"""An arm whose name holds this word is a control with conventional augmentation."""


@dataclass(frozen=True)
class ArmPredictions:
    """Softmax of every seed's classifier on the test images, in the order of the test shards."""

    seeds: list[int]
    probabilities: Float32[np.ndarray, "n s k"]

    @property
    def classes(self) -> Int64[np.ndarray, "s n"]:
        """Most probable class."""
        return self.probabilities.argmax(axis=2).T


def predict_arms(config: EvaluateConfig, inputs: Inputs, parts: Parts) -> dict[str, ArmPredictions]:
    """Classify the test split with every arm, one arm's classifiers in memory at a time.

    Parts are named after content, not after the arms' order, which is no part of the run's fingerprint.
    """
    predictions = {}
    for name, (path, manifest) in inputs.classifiers.items():
        seeds: list[int] = manifest.info["seeds"]
        models = [load_classifier(path, seed).to(device()) for seed in seeds]
        classify = partial(classify_shard, classifiers=models, batch_size=config.batch_size)
        units = shard_units(f"test-{manifest.identity[:16]}", inputs.test, classify)
        parts.compute(f"evaluate: {name} on the test split", units)
        predictions[name] = ArmPredictions(seeds, parts.load(units)["probabilities"])
    return predictions


def score_arms(
    config: EvaluateConfig, inputs: Inputs, predictions: Mapping[str, ArmPredictions], bootstrap: SplitBootstrap
) -> dict[str, ArmResult]:
    """Figures with intervals, and each arm's paired gain over the arms that it is held against."""
    scored = {
        name: _Scored(bootstrap, ArmBootstrap(bootstrap, arm.classes, name), _confusions(arm, bootstrap), arm.seeds)
        for name, arm in predictions.items()
    }
    infos = {name: manifest.info for name, (_, manifest) in inputs.classifiers.items()}
    ratios = {name: round(info["num_synthetic"] / max(1, info["num_real"]), 2) for name, info in infos.items()}
    results = {}
    for name, arm in predictions.items():
        ours = scored[name]
        metrics = {metric: ours.metric(scorer) for metric, scorer in METRICS.items()}
        metrics["calibration_error"] = _calibration(arm, bootstrap)
        p_values = {}
        for other in references_of(name, config, ratios):
            key = "accuracy_gain" if other == config.baseline else f"accuracy_gain_over_{other}"
            metrics[key], p_values[other] = _gain(ours, scored[other])
        info = infos[name]
        results[name] = ArmResult(
            description=config.arms[name].description,
            series=config.arms[name].series,
            num_real=info["num_real"],
            num_synthetic=info["num_synthetic"],
            steps=info["steps"],
            metrics=metrics,
            per_class=_per_class(ours, inputs.classes),
            confusion=ours.matrices.sum(axis=0).tolist(),
            p_value=p_values.pop(config.baseline, None),
            p_values=p_values,
        )
    return results


def references_of(name: str, config: EvaluateConfig, ratios: Mapping[str, float]) -> list[str]:
    """The arms that an arm's gain is measured over, in the config's order; the baseline is held against none.

    The baseline, every other arm of real images only, for an arm with synthetic images every arm whose name holds
    "augment", and the arms of other series with the same ratio of synthetic to real images (the ablations).
    """
    if name == config.baseline:
        return []
    synthetic = ratios[name] > 0

    def belongs(other: str) -> bool:
        augments = synthetic and AUGMENTATION in other.lower()
        same_ratio = synthetic and ratios[other] == ratios[name]
        counterpart = same_ratio and config.arms[other].series != config.arms[name].series
        return other == config.baseline or config.arms[other].synthetic is None or augments or counterpart

    return [other for other in config.arms if other != name and belongs(other)]


def _calibration(arm: ArmPredictions, bootstrap: SplitBootstrap) -> Metric:
    errors = [calibration_error(bootstrap.labels, arm.probabilities[:, s]) for s in range(len(arm.seeds))]
    method = (
        f"expected calibration error, {CALIBRATION_BINS} equal bins, mean over seeds ({min(errors):.3f} to "
        f"{max(errors):.3f}); biased upwards on few images, so no interval"
    )
    return Metric(value=float(np.mean(errors)), n=len(bootstrap.labels), seeds=arm.seeds, method=method)


@dataclass(frozen=True)
class _Scored:
    bootstrap: SplitBootstrap
    resampled: ArmBootstrap
    matrices: np.ndarray
    seeds: list[int]

    def metric(self, scorer: Scorer, n: int | None = None) -> Metric:
        return Metric(
            value=float(scorer(self.matrices).mean()),
            interval=interval_of(self.resampled.resampled(scorer)),
            n=n or len(self.bootstrap.labels),
            seeds=self.seeds,
            method=self.bootstrap.method,
        )


def _confusions(arm: ArmPredictions, bootstrap: SplitBootstrap) -> np.ndarray:
    return np.stack([confusion_matrix(bootstrap.labels, p, bootstrap.num_classes) for p in arm.classes])


def _per_class(scored: _Scored, classes: list[str]) -> dict[str, dict[str, Metric]]:
    counts = np.bincount(scored.bootstrap.labels, minlength=len(classes))

    def one(scorer: Scorer, label: int) -> Scorer:
        return lambda confusion: scorer(confusion)[..., label]

    return {
        name: {key: scored.metric(one(scorer, label), int(counts[label])) for key, scorer in CLASS_METRICS.items()}
        for label, name in enumerate(classes)
        if counts[label]
    }


def _gain(ours: _Scored, theirs: _Scored) -> tuple[Metric, float]:
    differences = ours.resampled.resampled(accuracy) - theirs.resampled.resampled(accuracy)
    value = float(accuracy(ours.matrices).mean() - accuracy(theirs.matrices).mean())
    method = f"paired over the same resampled test images; {ours.bootstrap.method}"
    interval = interval_of(differences)
    metric = Metric(value=value, interval=interval, n=len(ours.bootstrap.labels), seeds=ours.seeds, method=method)
    return metric, two_sided_p(differences)


def score_colours(
    train: Arrays, test: Arrays, classes: list[str], bootstrap: SplitBootstrap
) -> tuple[dict[str, Metric], dict[str, object]]:
    """The colour-histogram control, trained on the real training images, and how its penalty was chosen."""
    folds, how = colour_histogram.cross_validation_folds(train["groups"], train["labels"])
    penalty = colour_histogram.choose_penalty(train["histograms"], train["labels"], folds, len(classes))
    model = colour_histogram.LogisticRegression.fit(train["histograms"], train["labels"], len(classes), penalty)
    predicted = model.predict(test["histograms"])[None]
    matrices = np.stack([confusion_matrix(bootstrap.labels, predicted[0], len(classes))])
    scored = _Scored(bootstrap, ArmBootstrap(bootstrap, predicted, "colour histogram"), matrices, [])
    protocol = {
        "classifier": "logistic regression on square roots of joint 8x8x8 RGB histograms",
        "penalty": penalty,
        "penalties_tried": list(colour_histogram.PENALTIES),
        "chosen_by": f"{how} cross-validation on the training images",
    }
    return {name: scored.metric(METRICS[name]) for name in ("accuracy", "macro_f1")}, protocol


def unequal_steps(inputs: Inputs) -> list[str]:
    """A warning where the arms were not given the same number of optimizer steps."""

    def steps(dataset: Dataset) -> int:
        return int(dataset[1].info["steps"])

    if len({steps(dataset) for dataset in inputs.classifiers.values()}) == 1:
        return []
    listed = ", ".join(f"{name} {steps(dataset)}" for name, dataset in inputs.classifiers.items())
    return [f"arms were trained for different numbers of optimizer steps: {listed}"]
