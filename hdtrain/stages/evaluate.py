"""`hdtrain evaluate CONFIG --out RUN`: every arm on the test split, every set of images against the real ones.

Publishes `RUN/results.json`, the only source of the report's figures; `RUN/predictions/` holds what each arm said.
"""

from dataclasses import dataclass
from typing import Any

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.distributed.shared_work import SharedRun
from hdtrain.evaluation.arms import ArmPredictions, predict_arms, score_arms, score_colours, unequal_steps
from hdtrain.evaluation.galleries import closest_pairs, failures, pool_of
from hdtrain.evaluation.image_sets import ImageScorer
from hdtrain.evaluation.inputs import Inputs, arm_warnings, describe, judge_warnings, leaks
from hdtrain.evaluation.measurements import Measured, measure_sets
from hdtrain.evaluation.set_scores import score_sets
from hdtrain.evaluation.statistics import SplitBootstrap
from hdtrain.evaluation.summary import format_table, write_predictions
from hdtrain.features.encoders import Encoder, build_encoder
from hdtrain.features.parts import Arrays, Parts
from hdtrain.features.store import FeatureStore
from hdtrain.formats.results import ImageSetResult, Results
from hdtrain.stages.base import StageContext


def run(config: EvaluateConfig, context: StageContext) -> None:
    """Predict, embed and score with all who share the run; one of them publishes."""
    manifests = dict(context.parents.values())
    inputs = Inputs.open(config, manifests)
    with SharedRun.open(context.run, context.world, context.fingerprint) as shared:
        encoder = build_encoder(config.encoder).to(device())
        parts = Parts.open(shared, context.fingerprint)
        train, test = (describe(name, getattr(inputs, name), parts) for name in ("train", "test"))
        warnings = leaks(train, test) + unequal_steps(inputs)
        warnings += arm_warnings(config, inputs) + judge_warnings(config, inputs, manifests)
        predictions = predict_arms(config, inputs, parts)
        store = FeatureStore.open(shared, config.features)
        measured, image_sets = measure_sets(config, inputs, encoder, parts, store)
        scorer = ImageScorer(config, inputs.classes, encoder, measured, store)
        scores = score_sets(scorer, image_sets, parts)
        if shared.publishes(*parts.folders, *store.folders):
            made = _Made(config, inputs, encoder, train, test, predictions, image_sets, scorer, scores, warnings)
            _publish(made, context)


@dataclass(frozen=True)
class _Made:
    """What the shared part of the work has come to."""

    config: EvaluateConfig
    inputs: Inputs
    encoder: Encoder
    train: Arrays
    test: Arrays
    predictions: dict[str, ArmPredictions]
    image_sets: dict[str, Measured]
    scorer: ImageScorer
    scores: tuple[dict[str, ImageSetResult], list[str]]
    """And what was left out."""
    warnings: list[str]


def _publish(made: _Made, context: StageContext) -> None:
    config, inputs, train, test, encoder = made.config, made.inputs, made.train, made.test, made.encoder
    predictions, image_sets, scorer, warnings = made.predictions, made.image_sets, made.scorer, made.warnings
    scores, left_out = made.scores
    bootstrap = SplitBootstrap(
        test["labels"], test["groups"], len(inputs.classes), config.bootstrap_resamples, config.seed
    )
    colours, colour_protocol = score_colours(train, test, inputs.classes, bootstrap)
    pool, thresholds = pool_of({name: found.table for name, found in image_sets.items()}), scorer.thresholds
    protocol: dict[str, Any] = {
        "bootstrap": {"resamples": config.bootstrap_resamples, "method": bootstrap.method, "seed": config.seed},
        "p_value": "two-sided, paired bootstrap: 2·(1 + resamples on the far side of 0) / (1 + resamples)",
        **scorer.protocol(),
        "colour_histogram": colour_protocol,
    }
    results = Results(
        classes=inputs.classes,
        baseline=config.baseline,
        arms=score_arms(config, inputs, predictions, bootstrap),
        colour_histogram=colours,
        image_sets=scores,
        nearest=closest_pairs(pool, scorer.train.table, inputs.classes, thresholds) if pool and thresholds else [],
        distances=scorer.distances(image_sets),
        colours=scorer.colour_statistics(image_sets),
        failures=failures(pool, inputs.classes, config.failures) if pool and config.failures else [],
        encoder={
            "name": encoder.name,
            "weights": encoder.weights_sha256,
            "resize": encoder.resize,
            "resolution": encoder.resolution,
        },
        reference={"train": inputs.train[1].identity, "test": inputs.test[1].identity},
        protocol={**protocol, "left_out": left_out, "warnings": warnings},
    )
    write_predictions(context.run.path / "predictions", predictions, test)
    results.write(context.run.results)
    context.publish(classes=inputs.classes, files=[context.run.results])
    for warning in warnings:
        print(f"warning: {warning}")
    print(format_table(results))
