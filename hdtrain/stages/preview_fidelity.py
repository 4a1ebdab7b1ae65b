"""`python -m hdtrain.stages.preview_fidelity DIR < CONFIG`: what `evaluate-fidelity` would compare.

As of `hdtrain.stages.preview`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.evaluation.fidelity_inputs import read_compared
from hdtrain.formats.fingerprint import read_parents
from hdtrain.stages.preview import print_preview
from hdtrain.text import counted

STAGE = "evaluate-fidelity"


def preview(config: EvaluateFidelityConfig, _: Path) -> Iterator[str]:
    """The lines.

    Raises:
        HdtrainError: what the stage itself would refuse.
    """
    found = read_compared(config, dict(read_parents(config, STAGE).values()).__getitem__)
    made = counted(len(found.sources), "image" if config.images else "cell")
    yield f"{made}, each looked for among {len(found.candidates):,} embeddings of {found.encoder['name']}"
    yield from (f"warning: {doubt}" for doubt in found.doubts)


if __name__ == "__main__":
    sys.exit(print_preview(preview, EvaluateFidelityConfig, STAGE))
