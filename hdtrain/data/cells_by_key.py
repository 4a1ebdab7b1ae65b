"""The cells of sampled grids by their keys: embeddings of no image, to make images of."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hdtrain.data.pool import UNLABELLED
from hdtrain.errors import DataError
from hdtrain.formats.embedding_grid import EmbeddingGrid, GridRun
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.sampled_cells import SampledCells
from hdtrain.text import first_few

_GRIDS_KEPT = 8


class CellsByKey:
    """Every cell of a run of kind `grids`, a record of one token; in other respects as `RecordsByKey`.

    A grid's file is opened when a cell or the label of it is first asked for, so that a process reads the grids of its
    own images only. Resident are the grids' labels and the last few grids.

    Args:
        path: run directory.
        manifest: of it.

    Raises:
        DataError: it holds no grid.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self._path, self._cells, self._run = path, SampledCells.of(manifest), GridRun(path, manifest)
        self.shape = (1, int(manifest.info["dim"]))
        self._labels: dict[str, int] = {}
        self._grid = lru_cache(maxsize=_GRIDS_KEPT)(self._read)
        if not len(self):
            raise DataError(f"{path}: holds no grid at all; sample some with `hdtrain sample-grids`")

    def __len__(self) -> int:
        return len(self._cells)

    def keys(self) -> list[str]:
        """Of all cells, in the order of names, rows, columns."""
        return self._cells.keys()

    def label(self, key: str) -> int:
        """The class of a cell's grid; −1: unlabelled.

        Raises:
            DataError: there is no such cell, or its grid cannot be read.
        """
        ((name, _, _),) = self._places([key])
        if name not in self._labels:
            self._grid(name)
        return self._labels[name]

    def __call__(self, keys: Sequence[str]) -> Float32[np.ndarray, "n 1 d"]:
        """The embeddings of cells, as the prior gave them.

        Raises:
            DataError: there are no such cells (the first are named), or a grid cannot be read.
            ManifestError: a grid is missing or altered.
        """
        places, found = self._places(keys), np.empty((len(keys), *self.shape), np.float32)
        for number in sorted(range(len(keys)), key=places.__getitem__):
            name, row, column = places[number]
            found[number, 0] = self._grid(name).embeddings[row, column]
        return found

    def check(self, keys: Sequence[str]) -> None:
        """See that all of them are there.

        Raises:
            DataError: some are not; the first are named.
        """
        self._places(keys)

    def _places(self, keys: Sequence[str]) -> list[tuple[str, int, int]]:
        places = [self._cells.place(key) for key in keys]
        missing = list(dict.fromkeys(key for key, place in zip(keys, places, strict=True) if place is None))
        if missing:
            raise DataError(
                f"{self._path}: has no cell {first_few(missing)}; a cell is NAME-ROW-COLUMN, and the first of its "
                f"{len(self):,} is {self._cells.names[0]}-0-0"
            )
        return [place for place in places if place is not None]

    def _read(self, name: str) -> EmbeddingGrid:
        grid, classes = self._run.read(name, token=None), self._run.manifest.classes or []
        wanted = (self._cells.rows, self._cells.columns, self.shape[1])
        if grid.embeddings.shape != wanted or not grid.present.all():
            raise DataError(
                f"{self._path}: grid '{name}' has {int(grid.present.sum())} cells and shape {grid.embeddings.shape}, "
                f"the manifest says {wanted} with every cell; make the grids again with `hdtrain sample-grids`"
            )
        if grid.label is not None and grid.label not in classes:
            raise DataError(
                f"{self._path}: grid '{name}' is of class '{grid.label}', and the run knows "
                f"{', '.join(classes) or 'none'}; make the grids again with `hdtrain sample-grids`"
            )
        self._labels[name] = UNLABELLED if grid.label is None else classes.index(grid.label)
        return grid
