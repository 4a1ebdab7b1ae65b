"""The cells of sampled grids, as far as their manifest tells: no grid is opened for them. No torch.

A prior samples whole rectangles, all of one size, so the keys follow from the grids' names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hdtrain.formats.manifest import Manifest

GRIDS_FOLDER = "grids"


def sampled_names(manifest: Manifest) -> list[str]:
    """Names of the grids of a run of kind `grids`, in order."""
    return sorted(Path(file).stem for file in manifest.files if file.startswith(f"{GRIDS_FOLDER}/"))


@dataclass(frozen=True)
class SampledCells:
    """All cells of a run of kind `grids`. A cell's key is `NAME-ROW-COLUMN`; row and column count from 0."""

    names: Sequence[str]
    """Of the grids."""
    rows: int
    """Of each of them."""
    columns: int

    @classmethod
    def of(cls, manifest: Manifest) -> "SampledCells":
        """Those of a run, the grids in the order of their names."""
        return cls(sampled_names(manifest), int(manifest.info["rows"]), int(manifest.info["columns"]))

    def __len__(self) -> int:
        return len(self.names) * self.rows * self.columns

    def keys(self) -> list[str]:
        """Of all cells: grid by grid, row by row."""
        places = [f"{row}-{column}" for row in range(self.rows) for column in range(self.columns)]
        return [f"{name}-{place}" for name in self.names for place in places]

    def place(self, key: str) -> tuple[str, int, int] | None:
        """Name, row and column of a cell; None: there is no such cell."""
        name, *numbers = key.rsplit("-", 2)
        if name not in self._known or len(numbers) != 2 or not all(text.isdecimal() for text in numbers):
            return None
        row, column = map(int, numbers)
        inside = row < self.rows and column < self.columns
        return (name, row, column) if inside and key == f"{name}-{row}-{column}" else None

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)


def num_embeddings(manifest: Manifest) -> int:
    """Of a run: the records of kind `embeddings`, the cells of kind `grids`."""
    return len(SampledCells.of(manifest)) if manifest.kind == "grids" else manifest.num_samples
