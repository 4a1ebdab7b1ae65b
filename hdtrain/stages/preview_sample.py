"""`python -m hdtrain.stages.preview_sample DIR < CONFIG`: what `sample` would make, and what sweeps chose for it.

Torch is not imported. The rest as of `hdtrain.stages.preview`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from hdtrain.config.ranges import parse_ranges
from hdtrain.config.synthesis import SampleConfig
from hdtrain.data.embeddings_by_key import open_asked
from hdtrain.formats.fingerprint import read_parents
from hdtrain.sampling.fit import classes_of, doubts_of_choices, planned_counts, with_choices
from hdtrain.sampling.plan import SamplePlan
from hdtrain.stages.preview import print_preview
from hdtrain.text import counted

STAGE = "sample"
MISTAKE = 2


def preview(config: SampleConfig, _: Path) -> Iterator[str]:
    """The lines.

    Raises:
        HdtrainError: what the stage itself would refuse.
    """
    manifests = dict(read_parents(config, STAGE).values())
    classes = classes_of(config, manifests.__getitem__)
    only = parse_ranges(config.images) if config.images is not None else None
    if config.embeddings is not None:
        asked, begin = config.embeddings.run, config.embeddings.latents
        open_asked(config.embeddings, (asked, manifests[asked]), (begin, manifests[begin]) if begin else None)
    plan = SamplePlan(planned_counts(config, manifests.__getitem__), config.samples_per_shard, only)
    of = f" of {len(classes)} classes" if classes else ""
    if config.embeddings:
        of = f" from {counted(plan.num_classes, 'embedding')}"
    yield f"images: {plan.num_images:,}{of} in {counted(plan.num_units, 'shard')}"
    used = with_choices(config, manifests.__getitem__)
    if config.classifier:
        yield f"guidance: {used.guidance:g}{_chosen_in(config.guidance_from)}"
    yield f"solver: {used.solver.name}{_chosen_in(config.solver_from)}"
    yield from (f"warning: {doubt}" for doubt in doubts_of_choices(config, manifests.__getitem__))


def _chosen_in(sweep: object) -> str:
    return f", chosen in {sweep}" if sweep else ""


if __name__ == "__main__":
    sys.exit(print_preview(preview, SampleConfig, STAGE))
