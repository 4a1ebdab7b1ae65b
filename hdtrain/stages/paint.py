"""`hdtrain paint denoiser=RUN decoder=RUN grid.source=GRID --out RUN`: one large image from a grid of embeddings.

The ranks share the windows of every step; any number of them makes the same image.
"""

import shutil
from collections.abc import Mapping
from typing import Any

from hdtrain.config.painting import PaintConfig
from hdtrain.distributed.collectives import process_group, use_reproducible_kernels
from hdtrain.distributed.stop import STOP
from hdtrain.evaluation.real_pixels import open_real
from hdtrain.evaluation.seams import PixelRows, SeamReport, measure_seams
from hdtrain.formats.embedding_grid import EmbeddingGrid, write_grid
from hdtrain.formats.tokens import Tokens
from hdtrain.progress import Progress
from hdtrain.sampling.painting.fit import check_disk, check_grid, check_models, from_prior, plan_for
from hdtrain.sampling.painting.grids import open_grid
from hdtrain.sampling.painting.models import load_models
from hdtrain.sampling.painting.plan import PaintPlan
from hdtrain.sampling.painting.work import Painter
from hdtrain.sampling.prior import one_grid
from hdtrain.stages.base import StageContext
from hdtrain.text import counted

_SAID = ("steps", "guidance", "noise", "weights", "blend", "precision", "seed")
"""Keys that the manifest repeats."""


def run(config: PaintConfig, context: StageContext) -> None:
    """Run the stage."""
    use_reproducible_kernels()
    check_models(config, context.manifest_of)
    sampled = _drawn(config, context) if config.prior is not None else None
    STOP.install()  # not before: until here there is nothing to save
    wanted = Tokens.of(context.manifest_of(config.denoiser).info["embedding"])
    grid = open_grid(config, wanted, sampled)
    check_grid(grid, config, context.manifest_of)
    plan = plan_for(config, grid, context.manifest_of)
    real = open_real(config.compare_with, *plan.pixels) if config.compare_with else None
    if context.world.is_main:
        check_disk(plan, config, context.run.path)
        if grid.encoder_hash is None:
            print(f"warning: nobody knows which encoder grid '{grid.name}' comes from; the denoiser's is taken for it")
        if wanted.count > 1 and None in (wanted.order, grid.token_order):
            print(f"warning: nobody knows whether grid and denoiser have their {wanted.count} tokens in one order")
    with process_group():
        painter = Painter(config, grid, plan, load_models(config, context.manifest_of), context.run, context.world)
        pixels = painter.paint()
    if pixels is None:
        return
    levels = painter.write(pixels)
    seams = _seams(plan, {"painting": pixels} | ({"real": real} if real else {}))
    written = context.run.path / "grid.npz"
    write_grid(written, grid)
    context.publish(
        files=[painter.image, painter.thumbnail, written],
        info={
            "image": painter.image.name,
            "levels": [list(size) for size in levels],
            "mpp": grid.mpp,
            "label": grid.label,
            "grid": _described(grid),
            "encoder_hash": grid.encoder_hash,
            "edits": [edit.kind for edit in config.edits],
            "window": plan.window,
            "stride": plan.stride,
            "windows": plan.num_windows,
            "factor": plan.factor,
            **{name: getattr(config, name) for name in _SAID},
            "seams": {name: report.as_dict() for name, report in seams.items()},
        },
    )
    shutil.rmtree(context.run.work, ignore_errors=True)
    height, width = plan.pixels
    windows = counted(plan.num_windows, "window")
    print(f"painted {width:,} × {height:,} pixels from {grid.rows} × {grid.columns} cells, {windows} a step")
    for name, report in seams.items():
        print(f"{name}: {report}")


def _drawn(config: PaintConfig, context: StageContext) -> EmbeddingGrid:
    """The prior's grid; every rank draws it, alike. Room on the disk first: its size is known."""
    expected = from_prior(config, context.manifest_of)
    assert config.prior is not None
    assert expected is not None
    if context.world.is_main:
        check_disk(plan_for(config, expected, context.manifest_of), config, context.run.path)
    with Progress("prior", config.prior_steps, "steps", enabled=context.world.is_main) as progress:
        return one_grid(
            config.prior, config, config.prior_guidance, config.seed, config.prior_steps, lambda: progress.update(1)
        )


def _described(grid: EmbeddingGrid) -> dict[str, Any]:
    """For the manifest; tokens are said where there are several."""
    tokens = grid.tokens
    several = {"tokens": tokens.count, "token_order": tokens.order} if tokens.count > 1 else {}
    return {"name": grid.name, "rows": grid.rows, "columns": grid.columns, "dim": grid.dim, **several}


def _seams(plan: PaintPlan, measured: Mapping[str, PixelRows]) -> dict[str, SeamReport]:
    """Of the painting, and at the same lines of the real image if there is one."""
    stride, cell = plan.stride * plan.factor, plan.window * plan.factor
    return {name: measure_seams(found, stride, cell, plan.factor) for name, found in measured.items()}
