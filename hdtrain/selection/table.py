"""What a selection leaves behind besides the images: `index.parquet`, and the counts in its manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdtrain.formats.atomic import atomic_file
from hdtrain.selection.choose import Choice
from hdtrain.selection.gates import GATES, PASSES
from hdtrain.selection.score import Scores
from hdtrain.text import counted

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class", pa.string()),
        ("target_distance", pa.float64()),
        ("nearest_class", pa.string()),
        ("confidence", pa.float64()),
        ("predicted_class", pa.string()),
        ("entropy", pa.float64()),
        ("passes_gates", pa.bool_()),
        ("fell_at", pa.string()),
        ("topped_up", pa.bool_()),
        ("selected", pa.float64()),
        ("nearest_real_distance", pa.float64()),
    ]
)
"""One row a candidate, by key. `fell_at` is the first gate that it fails, null where it passes; `selected` the smallest
ratio that selects it, null where none does."""


def write_selection_index(
    path: Path, scores: Scores, classes: Sequence[str], selective: Mapping[float, Choice]
) -> None:
    """Write atomically."""
    seen, rows = scores.evidence, len(scores.shard)
    selected: list[float | None] = [None] * rows
    for ratio in sorted(selective, reverse=True):
        for row in selective[ratio].rows:
            selected[row] = ratio
    names, nothing = np.array(classes), [None] * rows
    columns = [
        seen.keys.tolist(),
        names[seen.labels].tolist(),
        seen.target_distance,
        names[seen.nearest_class].tolist(),
        nothing if seen.confidence is None else seen.confidence,
        nothing if seen.predicted_class is None else names[seen.predicted_class].tolist(),
        nothing if seen.entropy is None else seen.entropy,
        scores.candidates.passes,
        [None if gate == PASSES else GATES[gate] for gate in scores.fell_at],
        scores.topped_up,
        selected,
        scores.nearest_real_distance,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    with atomic_file(path) as stream:
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), stream)


def counts_per_class(
    scores: Scores, classes: Sequence[str], selective: Mapping[float, Choice]
) -> dict[str, dict[str, Any]]:
    """Real images, candidates (and how many of them were topped up), how many fell at each gate and how many passed,
    and how many each ratio had to do without."""
    everything, topped_up, passed = scores.per_class, scores.count(scores.topped_up), scores.passed
    fell = {gate: scores.count(scores.fell_at == number) for number, gate in enumerate(GATES)}
    return {
        name: {
            "real": scores.num_real[label],
            "candidates": everything[label],
            "topped_up": topped_up[label],
            "fell": {gate: counts[label] for gate, counts in fell.items()},
            "passed": passed[label],
            "shortfall": {f"{ratio:g}": choice.shortfall[name] for ratio, choice in selective.items()},
        }
        for label, name in enumerate(classes)
    }


def said_of(name: str, counts: Mapping[str, Any]) -> str:
    """One line for a class."""
    more = f" ({counts['topped_up']} of them topped up)" if counts["topped_up"] else ""
    fell = ", ".join(f"{count} at {gate}" for gate, count in counts["fell"].items() if count)
    short = ", ".join(f"{count} at ratio {ratio}" for ratio, count in counts["shortfall"].items() if count)
    passed = f"{counts['passed']} of {counted(counts['candidates'], 'candidate')} pass{more}"
    return (
        f"{name}: {passed}, {counted(counts['real'], 'real image')}"
        f"{'; fell: ' if fell else ''}{fell}{f'; filled with the nearest that fail: {short}' if short else ''}"
    )
