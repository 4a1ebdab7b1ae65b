"""What a selection leaves behind besides the images: `index.parquet`, and the counts in its manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdtrain.formats.atomic import atomic_file
from hdtrain.selection.choose import Choice
from hdtrain.selection.score import Scores

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class", pa.string()),
        ("target_distance", pa.float64()),
        ("nearest_class", pa.string()),
        ("confidence", pa.float64()),
        ("passes_gates", pa.bool_()),
        ("selected", pa.float64()),
        ("nearest_real_distance", pa.float64()),
    ]
)
"""One row a candidate, by key. `selected` is the smallest ratio that selects it, null where none does."""


def write_selection_index(path: Path, scores: Scores, classes: Sequence[str], selective: dict[float, Choice]) -> None:
    """Write atomically."""
    pool = scores.candidates
    selected: list[float | None] = [None] * len(pool.keys)
    for ratio in sorted(selective, reverse=True):
        for row in selective[ratio].rows:
            selected[row] = ratio
    names = np.array(classes)
    columns = [
        pool.keys.tolist(),
        names[pool.labels].tolist(),
        pool.target_distance,
        names[scores.nearest_class].tolist(),
        [None] * len(pool.keys) if scores.confidence is None else scores.confidence.astype(np.float64),
        pool.passes,
        selected,
        scores.nearest_real_distance,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    with atomic_file(path) as stream:
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), stream)


def counts_per_class(scores: Scores, classes: Sequence[str], selective: dict[float, Choice]) -> dict[str, Any]:
    """Real images, candidates, how many passed, and how many each ratio had to do without."""
    pool = scores.candidates
    return {
        name: {
            "real": scores.num_real[label],
            "candidates": int((pool.labels == label).sum()),
            "passed": int(pool.passes[pool.labels == label].sum()),
            "shortfall": {f"{ratio:g}": choice.shortfall[name] for ratio, choice in selective.items()},
        }
        for label, name in enumerate(classes)
    }
