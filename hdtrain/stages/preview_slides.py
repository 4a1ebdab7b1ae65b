"""`python -m hdtrain.stages.preview_slides DIR < CONFIG`: the bags that `evaluate-slides` would train and test on.

As of `hdtrain.stages.preview`.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hdtrain.config.slides import EvaluateSlidesConfig
from hdtrain.evaluation.bags import Bag
from hdtrain.evaluation.slide_arms import read_arms
from hdtrain.stages.preview import print_preview
from hdtrain.text import counted, table


def preview(config: EvaluateSlidesConfig, _: Path) -> Iterator[str]:
    """The lines.

    Raises:
        HdtrainError: what the stage itself would refuse.
    """
    arms = read_arms(config)
    rows = [["bags", *arms.classes], ["test", *_by_class(arms.test, arms.classes)]]
    for name in config.arms:
        rows.append([f"{name}, real", *_by_class(arms.real[name], arms.classes)])
        if arms.synthetic[name]:
            rows.append([f"{name}, synthetic", *_by_class(arms.synthetic[name], arms.classes)])
    yield table(rows)
    yield f"{counted(len(config.arms) * len(config.seeds), 'training')} of {config.mil.steps:,} steps"


def _by_class(bags: Sequence[Bag], classes: Sequence[str]) -> list[str]:
    counts = Counter(bag.label for bag in bags)
    return [f"{counts[name]:,}" for name in classes]


if __name__ == "__main__":
    sys.exit(print_preview(preview, EvaluateSlidesConfig, "evaluate-slides"))
