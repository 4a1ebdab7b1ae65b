"""Whole images as bags of embeddings: every slide of a run, or every grid, without its places."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hdtrain.errors import DataError
from hdtrain.formats.embedding_grid import GridRun


@dataclass(frozen=True)
class Bag:
    """One whole image."""

    name: str
    label: str
    instances: Float32[np.ndarray, "n d"]
    """Embeddings of its parts, as their encoder gave them."""
    encoder_hash: str | None
    run: Path

    def same_encoder(self, other: "Bag") -> bool:
        """Whether one encoder may have made both; where it is unknown, as many features will do."""
        hashes = {self.encoder_hash, other.encoder_hash} - {None}
        return self.instances.shape[1] == other.instances.shape[1] and len(hashes) < 2


def read_bags(runs: Sequence[Path], labels: Mapping[str, str] | None) -> list[Bag]:
    """All bags of published runs of kind `embeddings` or `grids`, in order.

    Args:
        runs: run directories.
        labels: bag to class; None: the label that each bag carries.

    Raises:
        DataError: no bag, one without a label, or embeddings of different sizes or encoders.
    """
    bags = [_bag(run, name, labels) for run in map(GridRun, runs) for name in run.names]
    if not bags:
        raise DataError(f"{', '.join(map(str, runs))}: no slides; embed tiles that were cut from slides, or name grids")
    first = bags[0]
    for bag in bags[1:]:
        if not bag.same_encoder(first):
            raise DataError(
                f"'{bag.name}' has embeddings of {bag.instances.shape[1]} features of encoder "
                f"{(bag.encoder_hash or 'unknown')[:12]}, '{first.name}' {first.instances.shape[1]} of "
                f"{(first.encoder_hash or 'unknown')[:12]}; embed all with one encoder"
            )
    return bags


def _bag(run: GridRun, name: str, labels: Mapping[str, str] | None) -> Bag:
    grid = run.read(name)
    label = grid.label if labels is None else labels.get(name)
    if label is None:
        where = "it carries none, or its tiles have several" if labels is None else "the table of labels has none"
        raise DataError(f"{run.path}: no label of '{name}': {where}; give labels=FILE.csv with a line '{name},CLASS'")
    return Bag(name, label, grid.embeddings[grid.present], grid.encoder_hash, run.path)


def read_labels(path: Path) -> dict[str, str]:
    """The table `bag,class` of a CSV file without a head line.

    Raises:
        DataError: a line of another form, or a bag twice.
    """
    found: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for number, line in enumerate(csv.reader(stream), start=1):
            if len(line) != 2 or not all(cell.strip() for cell in line):
                raise DataError(f"{path}:{number}: expected 'bag,class', got {','.join(line)!r}")
            bag, label = (cell.strip() for cell in line)
            if bag in found:
                raise DataError(f"{path}:{number}: '{bag}' stands there twice")
            found[bag] = label
    return found
