"""`hdtrain sample-grids CONFIG --out RUN`: grids of embeddings from a prior; ranks share them, any number the same."""

from dataclasses import replace
from typing import Any

from hdtrain.config.prior import SampleGridsConfig
from hdtrain.distributed.collectives import barrier, device, process_group, use_reproducible_kernels
from hdtrain.formats.embedding_grid import write_grid
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.sampled_cells import GRIDS_FOLDER
from hdtrain.models.published_prior import load_prior
from hdtrain.progress import Progress
from hdtrain.sampling.prior import GridSampler, wishes_with_text
from hdtrain.sampling.prior_fit import Wish, check, size_asked
from hdtrain.stages.base import StageContext
from hdtrain.text import counted


def run(config: SampleGridsConfig, context: StageContext) -> None:
    """Run the stage; a grid that is there is not made again."""
    use_reproducible_kernels()
    check(config, context.manifest_of)
    manifest = context.manifest_of(config.prior)
    wishes = wishes_in_order(config, manifest)
    size = size_asked(config, manifest)
    folder = context.run.path / GRIDS_FOLDER
    files = [folder / f"{wish.name(number, manifest.classes)}.npz" for number, wish in enumerate(wishes)]
    batches = [
        range(first, min(first + config.batch_size, len(wishes))) for first in range(0, len(wishes), config.batch_size)
    ]
    with process_group():
        prior = load_prior(config.prior, device())
        sampler = GridSampler(prior, manifest, size, config.guidance, config.steps, config.seed, config.batch_size)
        with Progress("sample-grids", len(wishes), "grids", enabled=context.world.is_main) as progress:
            for batch in context.world.share(batches):
                if not all(files[number].exists() for number in batch):
                    for number, grid in zip(batch, sampler(batch, [wishes[n] for n in batch]), strict=True):
                        write_grid(files[number], grid)
                progress.update(min(len(batch) * context.world.size, len(wishes) - progress.done))
        barrier()
    rows, columns = size
    context.publish(files=files, classes=manifest.classes, info=_info(config, manifest, size))
    if context.world.is_main:
        print(f"sampled {counted(len(files), 'grid')} of {rows} × {columns} cells, from {files[0].stem} on")


def wishes_in_order(config: SampleGridsConfig, manifest: Manifest) -> list[Wish]:
    """What grid i is to be: class by class, key by key, `count` times each."""
    asked = wishes_with_text(config, config.prior, manifest)
    if config.every_class:
        asked = [replace(wish, label=label) for label in range(len(manifest.classes or ())) for wish in asked]
    return [wish for wish in asked for _ in range(config.count)]


def _info(config: SampleGridsConfig, manifest: Manifest, size: tuple[int, int]) -> dict[str, Any]:
    embedding = manifest.info["embedding"]
    return {
        **{key: embedding[key] for key in ("dim", "encoder", "encoder_hash")},
        "tokens": 1,
        "rows": size[0],
        "columns": size[1],
        "mpp": manifest.info.get("mpp"),
        "prior": manifest.identity[:16],
        **{key: getattr(config, key) for key in ("text", "guidance", "steps", "seed")},
    }
