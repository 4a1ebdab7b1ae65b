"""`hdtrain train-prior CONFIG --out RUN`: train the model of whole grids of embeddings, publish its EMA."""

from pathlib import Path
from typing import Any

import torch

from hdtrain.config.prior import TrainPriorConfig
from hdtrain.data.slide_mpp import common_mpp
from hdtrain.formats.atomic import write_through
from hdtrain.models.published_prior import STANDARD, save_standards
from hdtrain.stages.base import StageContext
from hdtrain.stages.training import train, training
from hdtrain.training.prior import PriorTask
from hdtrain.training.prior_space import build, classes_of, describe, open_space


def run(config: TrainPriorConfig, context: StageContext) -> None:
    """Run the stage."""
    told, classes = describe(config, context.manifest_of), classes_of(config, context.manifest_of)
    with training(config, context, config.seed) as plan:
        space = open_space(config, context.manifest_of)
        torch.manual_seed(config.seed)  # a text tower may have drawn
        task = PriorTask(build(config, context.manifest_of), space, config, plan)
        train("train-prior", task, space.source, config, context, plan, config.seed)
        published: Any = task.engine.replica("ema")
    if not context.world.is_main:
        return
    folder = context.run.model
    published.save_pretrained(folder, safe_serialization=True)
    task.schedule.ddim(prediction="sample").save_pretrained(folder / "scheduler")

    def write(path: Path) -> None:
        save_standards(path, space.embeddings, space.numeric)

    write_through(folder / STANDARD, write)
    context.publish(
        files=sorted(path for path in folder.rglob("*") if path.is_file()),
        classes=classes,
        info={
            **told,
            "preset": config.preset,
            "schedule": config.schedule.model_dump(),
            "prediction": "sample",
            "ema_decay": config.ema.decay,
            "mpp": common_mpp(context.datasets(config.grids)),
            "samples": int(space.source.sizes.sum()),
            "images_seen": plan.num_steps(config.duration.images) * plan.global_batch_size,
            "parameters": sum(p.numel() for p in published.parameters()),
        },
    )
