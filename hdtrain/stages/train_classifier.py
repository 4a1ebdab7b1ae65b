"""`hdtrain train-classifier CONFIG --out RUN`: φ on images, ϕ on noisy latents, or a timm model; once a seed."""

from typing import Any

from hdtrain.config.adaptation import TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.distributed.collectives import process_group
from hdtrain.formats.atomic import write_through
from hdtrain.models.classifier import build_classifier, weights_file
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import train, training
from hdtrain.training.classifier_kinds import describe, make_task
from hdtrain.training.saving import write_tensors


def run(config: TrainClassifierConfig, context: StageContext) -> None:
    """Run the stage; a seed whose weights are there is not trained again."""
    architecture, info = describe(config, context.manifest_of)
    with process_group():
        for seed in config.seeds:
            if not weights_file(context.run.path, seed).exists():
                with training(config, context, seed) as plan:
                    _train_seed(config, context, plan, seed, architecture)
    if context.world.is_main:
        plan = BatchPlan.from_config(config.batch, context.world.size)
        info |= {"seeds": config.seeds, "steps": plan.num_steps(config.duration.images), "architecture": architecture}
        files = [weights_file(context.run.path, seed) for seed in config.seeds]
        context.publish(files=files, classes=architecture["classes"], info=info)


def _train_seed(
    config: TrainClassifierConfig, context: StageContext, plan: BatchPlan, seed: int, architecture: dict[str, Any]
) -> None:
    classifier = build_classifier(architecture)
    task, source = make_task(config, context.manifest_of, plan, seed, classifier)
    train(f"train-classifier seed {seed}", task, source, config, context, plan, seed, context.run.seed(seed))
    trained = task.engines["classifier"].replica()
    if context.world.is_main:
        weights = {name: value.cpu().contiguous() for name, value in trained.state_dict().items()}
        write_through(weights_file(context.run.path, seed), lambda path: write_tensors(path, weights))
