"""`python -m hdtrain.stages.preview_paint DIR < CONFIG`: how large a painting will be, and what it needs.

Torch is not imported. The rest as of `hdtrain.stages.preview`.
"""

import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path

from hdtrain.config.painting import PaintConfig
from hdtrain.evaluation.real_pixels import open_real
from hdtrain.formats.fingerprint import read_parents
from hdtrain.sampling.painting.fit import check, check_disk
from hdtrain.stages.preview import print_preview
from hdtrain.text import counted

STAGE = "paint"


def preview(config: PaintConfig, directory: Path) -> Iterator[str]:
    """The lines.

    Raises:
        HdtrainError: what the stage itself would refuse.
    """
    plan = check(config, dict(read_parents(config, STAGE).values()).__getitem__)
    check_disk(plan, config, directory)
    height, width = plan.pixels
    if config.compare_with:
        open_real(config.compare_with, height, width)
    windows = counted(plan.num_windows, "window")
    form = "tiled pyramidal TIFF" if plan.is_tiff(config) else "PNG"
    yield f"image: {width:,} × {height:,} pixels from {plan.rows} × {plan.columns} cells, a {form}"
    yield f"work: {windows} a step, {counted(config.steps, 'step')}"
    disk, memory = (ceil(needed / 1e6) for needed in (plan.disk_bytes(config), plan.memory_bytes(config)))
    yield f"needs: up to {disk:,} MB of disk while it is made; {memory:,} MB of memory a rank, beside the networks"


if __name__ == "__main__":
    sys.exit(print_preview(preview, PaintConfig, STAGE))
