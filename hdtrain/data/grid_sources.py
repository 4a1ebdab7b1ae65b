"""Where grids of embeddings come from for training: crops of slides, or single images as grids of one cell.

Samples are in groups (a slide's crops, a shard's images) as an order wants them. Embeddings stay on the disk; resident
are a slide's cells as 16 bytes each.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int64

from hdtrain.config.training import ShardAccess
from hdtrain.data.order import groups as by_value
from hdtrain.data.pool import UNLABELLED, ShardPool
from hdtrain.errors import DataError
from hdtrain.formats.embedding_grid import EmbeddingGrid, GridRun
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import RecordReader

Dataset = tuple[Path, Manifest]
OPEN_SHARDS = 64
_GRIDS_KEPT = 64


@dataclass
class GridSample:
    """One grid to train on."""

    name: str
    """Of this sample, for messages."""
    key: str
    """Of its conditions: the slide's or the image's."""
    label: int
    """−1: unlabelled."""
    embeddings: Float32[np.ndarray, "r c d"]
    """An absent cell is all zeros."""
    present: Bool[np.ndarray, "r c"]


class GridSource(Protocol):
    """Samples in groups."""

    sizes: Int64[np.ndarray, " groups"]

    def sample(self, group: int, number: int) -> GridSample:
        """One of them."""
        ...

    def vectors(self, group: int) -> Float32[np.ndarray, "n d"]:
        """All embeddings that a group's samples are made of, once each."""
        ...

    def keys(self) -> list[str]:
        """Keys of the conditions, each once."""
        ...


class Slide(Protocol):
    """A slide's grid."""

    name: str
    present: Bool[np.ndarray, "r c"]
    labels: Int64[np.ndarray, "r c"]

    def read(self, rows: Int64[np.ndarray, " n"], columns: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
        """The embeddings of cells that are present."""
        ...


@dataclass
class ShardedSlide:
    """A slide of a run of kind `embeddings`, its cells spread over shards."""

    name: str
    present: Bool[np.ndarray, "r c"]
    labels: Int64[np.ndarray, "r c"]
    shards: Int64[np.ndarray, "r c"]
    records: Int64[np.ndarray, "r c"]
    records_of: "Records"

    def read(self, rows: Int64[np.ndarray, " n"], columns: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
        """As of every slide."""
        return self.records_of(self.shards[rows, columns], self.records[rows, columns])


@dataclass
class SlideFile:
    """A slide of a run of kind `grids`."""

    run: GridRun
    name: str
    present: Bool[np.ndarray, "r c"]
    labels: Int64[np.ndarray, "r c"]

    def read(self, rows: Int64[np.ndarray, " n"], columns: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
        """As of every slide."""
        return _grid(self.run, self.name).embeddings[rows, columns]


@lru_cache(maxsize=_GRIDS_KEPT)
def _grid(run: GridRun, name: str) -> EmbeddingGrid:
    return run.read(name)


class Records:
    """Embeddings by shard and record, over several runs; one token of each."""

    def __init__(self, datasets: Sequence[Dataset], token: int):
        self.pool = ShardPool(datasets, ShardAccess(), OPEN_SHARDS, RecordReader)
        self.token = token
        info = datasets[0][1].info
        self.shape = (int(info["tokens"]), int(info["dim"]))

    def __call__(self, shards: Int64[np.ndarray, " n"], records: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
        """These records."""
        found = np.empty((len(shards), *self.shape), np.float16)
        for shard, rows in by_value(shards):
            with self.pool.use(shard) as opened:
                opened.reader.gather(records[rows], found, rows)
        return found[:, self.token].astype(np.float32)


def read_slides(
    datasets: Sequence[Dataset], token: int, classes: Sequence[str] | None, outlines: bool = False
) -> list[Slide]:
    """The slides of runs of kind `embeddings` and `grids`, in their order.

    With `outlines` no sampled grid is opened: it is full, as all of them are, and has no label.

    Raises:
        DataError: two runs have a slide of one name, or there is none.
    """
    sharded = [dataset for dataset in datasets if dataset[1].kind == "embeddings"]
    slides: list[Slide] = list(_sharded(sharded, token, classes)) if sharded else []
    for path, manifest in datasets:
        if manifest.kind == "grids":
            run = GridRun(path, manifest)
            slides += [
                _outline(run, name, manifest) if outlines else _slide_file(run, name, classes) for name in run.names
            ]
    names = [slide.name for slide in slides]
    where = ", ".join(str(path) for path, _ in datasets)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1)[:3]:
        raise DataError(f"{where}: more than one grid of {', '.join(twice)}; name every slide's run once")
    if not slides:
        raise DataError(
            f"{where}: no slide has a grid (their tiles have no slide, x and y, or lie on no lattice); unit=images "
            "trains on single images"
        )
    return slides


def _outline(run: GridRun, name: str, manifest: Manifest) -> SlideFile:
    present = np.ones((int(manifest.info["rows"]), int(manifest.info["columns"])), np.bool_)
    return SlideFile(run, name, present, np.full(present.shape, UNLABELLED))


def _slide_file(run: GridRun, name: str, classes: Sequence[str] | None) -> SlideFile:
    grid = run.read(name)
    label = classes.index(grid.label) if classes and grid.label in classes else UNLABELLED
    return SlideFile(run, name, grid.present, np.where(grid.present, label, UNLABELLED))


def _sharded(datasets: Sequence[Dataset], token: int, classes: Sequence[str] | None) -> list[ShardedSlide]:
    records = Records(datasets, token)
    shard_of = {(path, Path(entry.name).name): i for i, (path, entry) in enumerate(records.pool.places)}
    class_of = {name: i for i, name in enumerate(classes or ())}
    slides = []
    for path, manifest in datasets:
        run = GridRun(path, manifest)
        for name in run.names:
            cells = run.cells(name)
            shards = [shard_of[path, shard] for shard in cells["shard"]]
            labels = [class_of.get(label, UNLABELLED) for label in cells["label"]]
            filled = np.full((3, *manifest.info["grids"][name]), UNLABELLED, np.int64)
            filled[:, cells["row"], cells["column"]] = shards, cells["record"], labels
            slides.append(ShardedSlide(name, filled[0] >= 0, filled[2], filled[0], filled[1], records))
    return slides


class SlideCrops:
    """Crops of slides; a group is a slide.

    Args:
        slides: at least one.
        size: rows and columns of a crop; of a smaller slide the rest is absent.
        step: cells from one crop to the next; the last crop of a row ends where the slide does.
        min_present: crops with a smaller share of their cells are left out.

    Raises:
        DataError: no crop is left.
    """

    def __init__(self, slides: Sequence[Slide], size: tuple[int, int], step: int, min_present: float):
        self.size = size
        found = [(slide, _crops(slide.present, size, step, min_present)) for slide in slides]
        self.slides = [slide for slide, crops in found if len(crops)]
        self._crops = [crops for _, crops in found if len(crops)]
        self.sizes = np.array([len(crops) for crops in self._crops], np.int64)
        if not self.slides:
            best = max(float(slide.present.mean()) for slide in slides)
            rows, columns = max((slide.present.shape for slide in slides), key=math.prod)
            raise DataError(
                f"no crop of {size[0]} × {size[1]} cells has {min_present:.0%} of its cells, in {len(slides)} slides "
                f"(the largest is of {rows} × {columns}, the fullest has {best:.0%} of its own); give "
                "smaller rows and columns, or a smaller min_present"
            )

    def sample(self, group: int, number: int) -> GridSample:
        """One crop; its class is that of most of its cells."""
        slide = self.slides[group]
        top, left = self._crops[group][number].tolist()
        part = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        there, labels = slide.present[part], slide.labels[part]
        rows, columns = np.nonzero(there)
        vectors = slide.read(rows + top, columns + left)
        embeddings = np.zeros((*self.size, vectors.shape[1]), np.float32)
        present = np.zeros(self.size, np.bool_)
        embeddings[rows, columns], present[rows, columns] = vectors, True
        counts = np.bincount(labels[labels >= 0])
        label = int(counts.argmax()) if len(counts) else UNLABELLED
        return GridSample(f"{slide.name} (row {top}, column {left})", slide.name, label, embeddings, present)

    def vectors(self, group: int) -> Float32[np.ndarray, "n d"]:
        """Of all cells of a slide."""
        slide = self.slides[group]
        return slide.read(*np.nonzero(slide.present))

    def keys(self) -> list[str]:
        """Names of the slides."""
        return [slide.name for slide in self.slides]


def _crops(
    present: Bool[np.ndarray, "r c"], size: tuple[int, int], step: int, min_present: float
) -> Int64[np.ndarray, "n 2"]:
    """First row and column of every crop that is full enough, row by row."""
    total = np.pad(present.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    starts = []
    for length, window in zip(present.shape, size, strict=True):
        last = max(0, length - window)
        starts.append(np.unique(np.append(np.arange(0, last + 1, step), last)))
    top, left = (axis.ravel() for axis in np.meshgrid(*starts, indexing="ij"))
    bottom, right = np.minimum(top + size[0], present.shape[0]), np.minimum(left + size[1], present.shape[1])
    count = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    kept: np.ndarray = np.stack([top, left], axis=1)[count >= max(1, min_present * size[0] * size[1])]
    return kept


class SingleImages:
    """Every image of runs of kind `embeddings` as a grid of one cell; a group is a shard."""

    def __init__(self, datasets: Sequence[Dataset], token: int):
        self._records = Records(datasets, token)
        self.sizes = np.array([entry.samples for _, entry in self._records.pool.places], np.int64)

    def sample(self, group: int, number: int) -> GridSample:
        """One image."""
        with self._records.pool.use(group) as opened:
            key, label = opened.keys[number], int(opened.labels[number])
        vector = self._records(np.array([group]), np.array([number]))
        return GridSample(key, key, label, vector[None], np.ones((1, 1), np.bool_))

    def vectors(self, group: int) -> Float32[np.ndarray, "n d"]:
        """Of all images of a shard."""
        records = np.arange(self.sizes[group])
        return self._records(np.full(len(records), group), records)

    def keys(self) -> list[str]:
        """Of the images."""
        found: list[str] = []
        for number in range(len(self.sizes)):
            with self._records.pool.use(number) as opened:
                found += opened.keys
        return found
