"""Grids of embeddings as batches in the order of training, each with its class, text and numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from hdtrain.data.grid_sources import GridSource
from hdtrain.data.order import SampleOrder
from hdtrain.errors import DataError
from hdtrain.formats.vectors import VectorTable
from hdtrain.text import first_few

BLOCK_GROUPS = 64
"""Slides, or shards of images, whose samples are mixed with each other."""
CLASS, TEXT, NUMERIC = range(3)
"""Columns of `given`."""


@dataclass(frozen=True)
class GridBatch:
    """Grids, and what a prior is told of each."""

    embeddings: Float32[np.ndarray, "n r c d"]
    """As their encoder gives them; an absent cell is all zeros."""
    present: Bool[np.ndarray, "n r c"]
    keys: list[str]
    given: Bool[np.ndarray, "n 3"]
    """Which of class, text and numbers are known."""
    labels: Int64[np.ndarray, " n"]
    """0 where not known."""
    text: Float32[np.ndarray, "n k"]
    numeric: Float32[np.ndarray, "n m"]


class TrainingGrids:
    """Samples of a source at any positions of one order.

    Args:
        source: of the grids.
        seed: of the order.
        labelled: whether samples are told their class.
        text: vectors by key; None: without texts.
        numeric: the same.
    """

    def __init__(
        self,
        source: GridSource,
        seed: int,
        labelled: bool = False,
        text: VectorTable | None = None,
        numeric: VectorTable | None = None,
    ):
        self.source, self.labelled, self.text, self.numeric = source, labelled, text, numeric
        self.sizes = source.sizes
        self.order = SampleOrder(source.sizes, seed, BLOCK_GROUPS)

    def batch(self, positions: range) -> GridBatch:
        """The grids at `positions`.

        Raises:
            ShardError: a shard is missing or damaged.
            DataError: an embedding is NaN or infinite.
        """
        groups, numbers = self.order.locate(positions)
        samples = [self.source.sample(*place) for place in zip(groups.tolist(), numbers.tolist(), strict=True)]
        embeddings = np.stack([sample.embeddings for sample in samples])
        if not np.isfinite(embeddings).all():
            bad = next(s.name for s in samples if not np.isfinite(s.embeddings).all())
            raise DataError(f"NaN or infinity among the embeddings of {bad}; embed it again")
        labels = np.array([sample.label if self.labelled else -1 for sample in samples], np.int64)
        keys = [sample.key for sample in samples]
        text, has_text = _rows(self.text, keys)
        numeric, has_numeric = _rows(self.numeric, keys)
        return GridBatch(
            embeddings,
            np.stack([sample.present for sample in samples]),
            [sample.name for sample in samples],
            np.stack([labels >= 0, has_text, has_numeric], axis=1),
            np.maximum(labels, 0),
            text,
            numeric,
        )


def _rows(table: VectorTable | None, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if table is None:
        return np.zeros((len(keys), 0), np.float32), np.zeros(len(keys), np.bool_)
    return table.rows(keys)


def check_keys(table: VectorTable, keys: Sequence[str], what: str) -> int:
    """How many of the keys have a vector.

    Raises:
        DataError: none of them.
    """
    known = sum(key in table for key in keys)
    if not known:
        raise DataError(
            f"{what}: none of its {len(table.keys)} keys ({first_few(table.keys)}) is that of a grid "
            f"({first_few(keys)}); the key of a crop is its slide's name, of a single image its own"
        )
    return known
