"""Embeddings that images are asked of, wherever they come from: of images, or of a prior."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from hdtrain.config.synthesis import FromEmbeddingsConfig
from hdtrain.data.cells_by_key import CellsByKey
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.text import counted

_LOOKED_THROUGH = 10_000
"""Keys among which a similar one is looked for."""


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


def open_asked(
    config: FromEmbeddingsConfig, embeddings: tuple[Path, Manifest], latents: tuple[Path, Manifest] | None
) -> tuple[EmbeddingsByKey, RecordsByKey | None]:
    """The embeddings that images are asked of and the latents that they begin from, every key that is named there.

    Raises:
        DataError: a key has no embedding, or no latent.
    """
    found = embeddings_by_key(*embeddings)
    named = [*config.keys, *(key for pair in config.between for key in pair)]
    if isinstance(found, RecordsByKey):
        _check_images(found, named, embeddings[0])
    else:
        found.check(named)
    begin = RecordsByKey([latents], "moments") if latents else None
    if begin is not None:
        begin.check(config.keys or found.keys())
    return found, begin


def _check_images(found: RecordsByKey, named: Sequence[str], run: Path) -> None:
    """Refuse keys that the embeddings of images do not have; a misspelled one meets its neighbour."""
    unknown = found.missing(named)
    if not unknown:
        return
    keys = found.keys()
    close = difflib.get_close_matches(unknown[0], keys[:_LOOKED_THROUGH], n=1)
    hint = f"the nearest is '{close[0]}'" if close else f"the first of its {len(keys):,} keys is '{keys[0]}'"
    more = f" and {counted(len(unknown) - 1, 'other key')}" if len(unknown) > 1 else ""
    raise DataError(
        f"{run}: has no embedding of '{unknown[0]}'{more}; {hint}; all are in the column key of {RunDir(run).index}"
    )
