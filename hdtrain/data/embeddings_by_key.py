"""Embeddings that images are asked of, wherever they come from: of images, or of a prior."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from hdtrain.data.cells_by_key import CellsByKey
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.formats.manifest import Manifest


class EmbeddingsByKey(Protocol):
    """Embeddings by their keys, each with a label."""

    def __len__(self) -> int:
        """How many."""
        ...

    def keys(self) -> list[str]:
        """Of all of them, in an order that does not change."""
        ...

    def label(self, key: str) -> int:
        """−1: unlabelled."""
        ...

    def check(self, keys: Sequence[str]) -> None:
        """Raise DataError if some are not there."""
        ...

    def __call__(self, keys: Sequence[str]) -> Float[np.ndarray, "n k d"]:
        """Tokens as the encoder gives them; DataError where some are not there."""
        ...


def embeddings_by_key(path: Path, manifest: Manifest) -> EmbeddingsByKey:
    """Those of a run of kind `embeddings` or `grids`.

    Raises:
        DataError: it holds none, or two of one key.
    """
    return CellsByKey(path, manifest) if manifest.kind == "grids" else RecordsByKey([(path, manifest)], "embedding")
