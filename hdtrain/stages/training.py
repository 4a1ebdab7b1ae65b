"""What the training stages share: the process group, the batch plan, and a trainer that knows its run directory."""

import contextlib
from collections.abc import Iterator
from typing import Protocol, cast

import torch

from hdtrain.config.base import Config
from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.data.images import ImageBatch, TrainingImages
from hdtrain.distributed.collectives import process_group
from hdtrain.formats.run_dir import RunDir
from hdtrain.stages.base import StageContext
from hdtrain.training.classifier_kinds import EXAMPLES
from hdtrain.training.loop import LoopConfig, Trainer
from hdtrain.training.task import Source, Task
from hdtrain.training.workload import costs_of


class TrainingConfig(LoopConfig, Protocol):
    """The parts that every training config has."""

    @property
    def batch(self) -> BatchConfig:
        """Sizes of a batch."""
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
    """Train `task` to the end in the stage's run directory, or in `run`, a part of it."""
    costs = costs_of(cast(Config, config), context.manifest_of)
    Trainer(title, task, source, plan, config, context.world, seed, run or context.run, costs).train()


def image_examples(source: TrainingImages) -> ImageBatch:
    """The same few images at every visit, spread over the data set."""
    return source.batch(range(EXAMPLES))
