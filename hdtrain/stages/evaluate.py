"""`hdtrain evaluate CONFIG --out RUN`: every arm on the test split, every set of images against the real ones.

Publishes `RUN/results.json`, the only source of the report's figures; `RUN/predictions/` holds what each arm said.
"""

from typing import Any

from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.distributed.collectives import device
from hdtrain.evaluation import kid, memorisation, prdc
from hdtrain.evaluation.arms import predict_arms, score_arms, score_colours, unequal_steps
from hdtrain.evaluation.image_sets import ImageScorer, embed_sets
from hdtrain.evaluation.inputs import Inputs, describe, leaks
from hdtrain.evaluation.statistics import SplitBootstrap
from hdtrain.evaluation.summary import format_table, write_predictions
from hdtrain.features.encoders import RESIZE, build_encoder
from hdtrain.features.parts import Parts
from hdtrain.formats.results import Results, write_results
from hdtrain.stages.base import StageContext


def run(config: EvaluateConfig, context: StageContext) -> None:
    """Predict and embed on all ranks, score and publish on rank 0."""
    inputs = Inputs.open(config, dict(context.parents.values()))
    encoder = build_encoder(config.encoder).to(device())
    parts = Parts.open(context.run.path, context.fingerprint, context.world)
    train, test = (describe(name, getattr(inputs, name), parts) for name in ("train", "test"))
    warnings = leaks(train, test) + unequal_steps(inputs)
    predictions = predict_arms(config, inputs, parts)
    train_features, image_sets = embed_sets(config, inputs, encoder, parts)
    if not context.world.is_main:
        return

    bootstrap = SplitBootstrap(
        test["labels"], test["groups"], len(inputs.classes), config.bootstrap_resamples, config.seed
    )
    colours, colour_protocol = score_colours(train, test, inputs.classes, bootstrap)
    scorer = ImageScorer(config, inputs.classes, encoder.name, train_features)
    protocol: dict[str, Any] = {
        "bootstrap": {"resamples": config.bootstrap_resamples, "method": bootstrap.method, "seed": config.seed},
        "p_value": "two-sided, paired bootstrap: 2·(1 + resamples on the far side of 0) / (1 + resamples)",
        "kid": {"subsets": kid.NUM_SUBSETS, "subset_size": config.kid_subset_size, "seed": config.seed},
        "prdc": {"k_precision_recall": prdc.K_PRECISION_RECALL, "k_density_coverage": prdc.K_DENSITY_COVERAGE},
        "memorisation": {"quantile": memorisation.QUANTILE, "threshold": scorer.threshold},
        "image_resolution": config.resolution,
        "colour_histogram": colour_protocol,
    }
    results = Results(
        classes=inputs.classes,
        baseline=config.baseline,
        arms=score_arms(config, inputs, predictions, bootstrap),
        colour_histogram=colours,
        image_sets={name: scorer.score(name, table) for name, table in image_sets.items()},
        nearest=scorer.nearest(image_sets),
        encoder={
            "name": encoder.name,
            "weights": encoder.weights_sha256,
            "resize": RESIZE,
            "resolution": encoder.resolution,
        },
        reference={"train": inputs.train[1].identity, "test": inputs.test[1].identity},
        protocol={**protocol, "left_out": scorer.left_out, "warnings": warnings},
    )
    write_predictions(context.run.path / "predictions", predictions, test)
    write_results(context.run.results, results)
    context.publish(classes=inputs.classes, files=[context.run.results])
    for warning in warnings:
        print(f"warning: {warning}")
    print(format_table(results))
