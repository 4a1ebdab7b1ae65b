"""`hdtrain train-classifier CONFIG --out RUN`: φ on images, ϕ on noisy latents, or a timm model; once a seed."""

from typing import Any

from hdtrain.config.adaptation import TrainClassifierConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.distributed.collectives import barrier, device, process_group
from hdtrain.formats.atomic import write_through
from hdtrain.models.classifier import build_classifier, weights_file
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import train, training
from hdtrain.training.classifier import ClassifierTask
from hdtrain.training.classifier_kinds import access, describe, make_task, training_sets
from hdtrain.training.held_out import check_held_out
from hdtrain.training.outcome import Outcome, gather, measure
from hdtrain.training.saving import read_weights, write_tensors


def run(config: TrainClassifierConfig, context: StageContext) -> None:
    """Run the stage; a seed whose weights are there is not trained again."""
    architecture, info = describe(config, context.manifest_of)
    todo = [seed for seed in config.seeds if not weights_file(context.run.path, seed).exists()]
    if todo and config.validation:
        held_out = config.validation, context.manifest_of(config.validation)
        check_held_out(training_sets(config, context.manifest_of), held_out, access(config))
    with process_group():
        barrier()  # all have seen which seeds are to do
        for seed in todo:
            with training(config, context, seed) as plan:
                _train_seed(config, context, plan, seed, architecture)
    if context.world.is_main:
        files = {seed: weights_file(context.run.path, seed) for seed in config.seeds}
        info |= {"seeds": config.seeds, "architecture": architecture}
        info |= gather({seed: Outcome.read(path) for seed, path in files.items()})
        context.publish(files=list(files.values()), classes=architecture["classes"], info=info)


def _train_seed(
    config: TrainClassifierConfig, context: StageContext, plan: BatchPlan, seed: int, architecture: dict[str, Any]
) -> None:
    classifier = build_classifier(architecture)
    task, source = make_task(config, context.manifest_of, plan, seed, classifier)
    train(f"train-classifier seed {seed}", task, source, config, context, plan, seed, context.run.seed(seed))
    num_steps = plan.num_steps(config.duration.images)
    chosen = _chosen(task, context, seed, num_steps)
    outcome = measure(task, chosen, num_steps)
    if context.world.is_main:
        weights = {name: value.cpu().contiguous() for name, value in chosen.state_dict().items()}
        path = weights_file(context.run.path, seed)
        write_through(path, lambda part: write_tensors(part, weights, outcome.metadata()))


def _chosen(task: ClassifierTask, context: StageContext, seed: int, num_steps: int) -> Any:
    """A plain module with the weights to publish, on every rank."""
    model = task.engine.replica()
    step = task.choice.chosen_step(num_steps) if task.choice else num_steps
    if task.choice and step != task.choice.steps_made(num_steps):
        barrier()  # the main rank has written it
        weights = read_weights(context.run.seed(seed), step, task.engine.name)
        model.load_state_dict({name: value.to(device()) for name, value in weights.items()})
    return model
