"""What the training stages share: the process group, the batch plan, and a trainer that knows its run directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import BatchConfig, DurationConfig, OptimConfig
from hdtrain.data.images import ImageBatch, TrainingImages
from hdtrain.distributed.collectives import process_group
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.stages.base import StageContext
from hdtrain.training.classifier_kinds import EXAMPLES
from hdtrain.training.loop import Trainer
from hdtrain.training.task import Source, Task


class TrainingConfig(Protocol):
    """The parts that every training config has."""

    @property
    def batch(self) -> BatchConfig:
        """Sizes of a batch."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """Optimizer and schedule."""
        ...

    @property
    def duration(self) -> DurationConfig:
        """Images to see."""
        ...


@contextlib.contextmanager
def training(config: TrainingConfig, context: StageContext, seed: int) -> Iterator[BatchPlan]:
    """Check the batch plan, join the process group, seed the initial weights (the same on every rank)."""
    plan = BatchPlan.from_config(config.batch, context.world.size)
    with process_group():
        torch.manual_seed(seed)
        yield plan


def train(
    title: str,
    task: Task,
    source: Source,
    config: TrainingConfig,
    context: StageContext,
    plan: BatchPlan,
    seed: int,
    run: RunDir | None = None,
) -> None:
    """Train `task` to the end in the stage's run directory (or in `run`, a part of it)."""
    run = run or context.run
    Trainer(
        title=title,
        task=task,
        source=source,
        plan=plan,
        optim=config.optim,
        duration=config.duration,
        world=context.world,
        seed=seed,
        checkpoints=run.checkpoints,
        metrics=run.metrics,
        tensorboard=run.tensorboard,
    ).train()


def datasets_of(context: StageContext, paths: list[Path]) -> list[tuple[Path, Manifest]]:
    """The data sets that a config lists, with their manifests."""
    return [(path, context.manifest_of(path)) for path in paths]


def image_examples(source: TrainingImages) -> ImageBatch:
    """The same few images at every visit, spread over the data set."""
    return source.batch(range(EXAMPLES))
