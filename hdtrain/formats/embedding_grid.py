"""Embeddings of a slide as a grid of cells, whatever they came from. No torch.

`read_grid` takes a grid that `write_grid` wrote, a run of ours (`embeddings`, `grids`), and what others have computed
(`hdtrain.formats.foreign_grids`); for many grids of a run open it once, as `GridRun`. Row and column are explicit: the
row grows with y, the column with x.
"""

import json
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int64

from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.atomic import atomic_file, canonical_json
from hdtrain.formats.foreign_grids import FOREIGN, Cells, read_foreign
from hdtrain.formats.manifest import Manifest, check_files, read_manifest
from hdtrain.formats.records import RecordReader
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.sampled_cells import GRIDS_FOLDER, sampled_names
from hdtrain.formats.tokens import Tokens
from hdtrain.text import first_few

VERSIONS = {3: 1, 4: 2}
"""Of a file, by the dimensions of its embeddings: a grid of one token a cell is what it always was."""
UNKNOWN_PX = -1
"""x or y of a cell whose place nobody knows."""
KINDS = ("embeddings", "grids")
LARGEST = float(np.finfo(np.float16).max)
"""Absolute value of a feature."""
_ARRAYS = ("embeddings", "present", "x", "y")
_COLUMNS = ["slide", "shard", "record", "row", "column", "x", "y", "mpp", "label"]


@dataclass(frozen=True)
class EmbeddingGrid:
    """One slide's embeddings."""

    name: str
    embeddings: Float32[np.ndarray, "r c *k d"]
    """As the encoder gives them, not normalised; an absent cell is all zeros. (rows, columns, features) of one token a
    cell, (rows, columns, tokens, features) of several."""
    present: Bool[np.ndarray, "r c"]
    x: Int64[np.ndarray, "r c"]
    """Left of the tile, in pixels of the slide's finest level; −1: not known."""
    y: Int64[np.ndarray, "r c"]
    """Top of the tile."""
    mpp: float | None = None
    """Micrometres a pixel of the tiles."""
    label: str | None = None
    encoder_hash: str | None = None
    """Of the encoder's description (`info.encoder_hash` of a run); None: computed elsewhere, not known."""
    token_order: tuple[str, ...] | None = None
    """A name a token (`info.token_order` of a run); None: not known."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.present.shape[0])

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(self.present.shape[1])

    @property
    def dim(self) -> int:
        """Features of an embedding."""
        return int(self.embeddings.shape[-1])

    @property
    def tokens(self) -> Tokens:
        """Of a cell."""
        return Tokens(1 if self.embeddings.ndim == 3 else int(self.embeddings.shape[2]), self.token_order)

    def only(self, token: int) -> "EmbeddingGrid":
        """The grid of one of its tokens, numbered from 0.

        Raises:
            ManifestError: it has not as many.
        """
        tokens = self.tokens
        if not 0 <= token < tokens.count:
            raise ManifestError(f"grid '{self.name}' has {tokens} a cell, numbered from 0; there is no token {token}")
        if tokens.count == 1:
            return self
        order = tokens.order and (tokens.order[token],)
        return replace(self, embeddings=self.embeddings[:, :, token], token_order=order)

    def crop(self, rows: slice, columns: slice) -> "EmbeddingGrid":
        """A part of it.

        Raises:
            DataError: no cell of the part is present.
        """
        parts = {name: getattr(self, name)[rows, columns] for name in _ARRAYS}
        return checked(replace(self, **parts), f"grid '{self.name}'")

    def check_encoder(self, dim: int, encoder_hash: str | None, where: str) -> None:
        """Refuse a grid that a model cannot be conditioned on.

        Args:
            dim: features of an embedding that the model was trained on.
            encoder_hash: of the encoder that they came from; None: not known.
            where: names the model.

        Raises:
            ManifestError: the dimension differs, or both encoders are known and differ.
        """
        if self.dim != dim:
            raise ManifestError(
                f"grid '{self.name}' has embeddings of {self.dim} features, {where} was trained on {dim}; embed the "
                "slide with the encoder that the model was trained with"
            )
        if self.encoder_hash is not None and encoder_hash is not None and self.encoder_hash != encoder_hash:
            raise ManifestError(
                f"grid '{self.name}' comes from encoder {self.encoder_hash[:12]}, {where} was trained on encoder "
                f"{encoder_hash[:12]}; embed the slide with that encoder, as the model's manifest describes it"
            )


def checked(grid: EmbeddingGrid, where: str) -> EmbeddingGrid:
    """The grid, if it can be used.

    Raises:
        DataError: shapes that do not fit, NaN, infinity or beyond float16 (names the cells), no cell at all.
    """
    shape = grid.embeddings.shape
    if len(shape) not in VERSIONS or 0 in shape or shape[2:-1] == (1,):
        raise DataError(
            f"{where}: embeddings of shape {shape}, expected (rows, columns, features), none of them 0, or of two "
            "tokens a cell and more (rows, columns, tokens, features)"
        )
    if grid.token_order is not None and len(grid.token_order) != grid.tokens.count:
        raise DataError(
            f"{where}: {len(grid.token_order)} names for {grid.tokens.count} tokens a cell; expected one each"
        )
    for name in _ARRAYS[1:]:
        found = getattr(grid, name).shape
        if found != shape[:2]:
            raise DataError(f"{where}: {name} has shape {found}, the embeddings have {shape[:2]} cells")
    features = tuple(range(2, len(shape)))
    bad = np.argwhere(~np.isfinite(grid.embeddings).all(axis=features))
    if len(bad):
        raise DataError(
            f"{where}: NaN or infinity in {len(bad)} of {grid.present.size} cells: {named_cells(bad)}; embed the slide "
            "again, or leave these cells out"
        )
    largest = np.abs(grid.embeddings).max(axis=features)
    if len(huge := np.argwhere(largest > LARGEST)):
        raise DataError(
            f"{where}: features up to {largest.max():.3g} in {len(huge)} of {grid.present.size} cells: "
            f"{named_cells(huge)}; embeddings are kept as float16, which ends at {LARGEST:,.0f}; scale them, and those "
            "that the models are trained on, alike"
        )
    if not grid.present.any():
        raise DataError(f"{where}: no cell of {grid.rows} × {grid.columns} is present")
    return grid


def named_cells(cells: Int64[np.ndarray, "n 2"]) -> str:
    """The first few of cells (row, column), for messages."""
    return first_few([f"(row {row}, column {column})" for row, column in cells.tolist()])


def over_cells(cells: Bool[np.ndarray, "r c"], embeddings: Float[np.ndarray, "r c *k d"]) -> Bool[np.ndarray, "..."]:
    """What is said of cells, in a shape that numpy takes beside their embeddings."""
    return cells.reshape(cells.shape + (1,) * (embeddings.ndim - cells.ndim))


def write_grid(path: Path, grid: EmbeddingGrid) -> None:
    """One `.npz` without pickles, by rename; the same grid gives the same bytes.

    With one token a cell the file is of version 1 and names no token, with several it is of version 2 and does.

    Raises:
        DataError: as `checked`.
    """
    checked(grid, f"grid '{grid.name}'")
    embeddings = np.where(over_cells(grid.present, grid.embeddings), grid.embeddings, 0).astype(np.float32)
    arrays: dict[str, np.ndarray] = {
        "embeddings": embeddings,
        "present": grid.present.astype(np.bool_),
        "x": grid.x.astype(np.int64),
        "y": grid.y.astype(np.int64),
    }
    facts = {name: getattr(grid, name) for name in ("name", "mpp", "label", "encoder_hash")}
    if grid.tokens.count > 1:
        facts["token_order"] = grid.token_order
    facts["version"] = VERSIONS[embeddings.ndim]
    arrays["info"] = np.frombuffer(canonical_json(facts), np.uint8)
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)


def read_grid(path: Path, name: str | None = None, token: int | None = 0) -> EmbeddingGrid:
    """A grid, checked.

    Args:
        path: a `.npz` of `write_grid`; a published run of kind `embeddings` or `grids`; `.npy` (rows, columns,
            features); `.h5`, `.parquet` or `.zarr` from elsewhere.
        name: the slide, where several are there.
        token: which of a cell's tokens, where there are several (`token_order`); None: all of them. A file from
            elsewhere has one.

    Raises:
        DataError: missing, of another layout, NaN, no cell, two tiles in one cell.
        ManifestError: the run is not published, of another kind, or has no such slide; there is no such token.
    """
    if path.is_dir() and path.suffix != ".zarr":
        return GridRun(path).read(name, token)
    found = _of_file(path, name)
    return found if token is None else found.only(token)


def _of_file(path: Path, name: str | None) -> EmbeddingGrid:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected a grid of embeddings")
    if path.suffix == ".npz":
        return _of_npz(path)
    if path.suffix not in FOREIGN:
        raise DataError(f"{path}: not a grid of embeddings; expected a run, .npz, {', '.join(sorted(FOREIGN))}")
    return _of_cells(read_foreign(path, name), str(path))


def _of_npz(path: Path) -> EmbeddingGrid:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
            facts = json.loads(archive["info"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as a grid of hdtrain's: {error}") from None
    if facts.pop("version", None) != VERSIONS.get(arrays["embeddings"].ndim):
        versions = " and ".join(map(str, VERSIONS.values()))
        raise DataError(f"{path}: a grid of another version, this hdtrain reads versions {versions}; write it again")
    order = facts.pop("token_order", None)
    return checked(EmbeddingGrid(**arrays, **facts, token_order=order and tuple(order)), str(path))


class GridRun:
    """The grids of a published run of kind `embeddings` or `grids`. Manifest, index and the shards' sidecars are read
    once, however many grids are read; a grid is read when it is asked for.

    Args:
        path: run directory.
        manifest: of it, where it is at hand.

    Raises:
        ManifestError: it is not published, or of another kind.
    """

    def __init__(self, path: Path, manifest: Manifest | None = None):
        self.path, self.manifest = path, manifest or read_manifest(path, KINDS)
        self._readers: dict[str, RecordReader] = {}

    @cached_property
    def names(self) -> list[str]:
        """Of the grids, in order."""
        return sampled_names(self.manifest) if self.manifest.kind == "grids" else sorted(self.manifest.info["grids"])

    def read(self, name: str | None = None, token: int | None = 0) -> EmbeddingGrid:
        """A grid, checked.

        Args:
            name: of it; None: the only one.
            token: as of `read_grid`.

        Raises:
            DataError: it cannot be read.
            ManifestError: there is no such grid or token, or its file is missing or altered.
        """
        chosen = self._chosen(name)
        if self.manifest.kind == "embeddings":
            return self._of_records(chosen, token)
        found = self._of_file(chosen)
        return found if token is None else found.only(token)

    def cells(self, name: str) -> dict[str, list[Any]]:
        """What the index of a run of kind `embeddings` says of the cells that a slide's grid has: column to values."""
        table, rows_of = self._index
        found: dict[str, list[Any]] = table.take(rows_of.get(name, np.empty(0, np.int64))).to_pydict()
        return found

    def _chosen(self, name: str | None) -> str:
        path, names = self.path, self.names
        if name is None and len(names) == 1:
            return names[0]
        if name is not None and name in self._known:
            return name
        shown = first_few(names)
        if not names:
            raise ManifestError(
                f"{path} has no grid: its tiles have no slide, x and y, or lie on no regular lattice; cut "
                "slides (`layout: slide`), or tell the places by `pattern`. Single images are made by `hdtrain sample "
                "embeddings.run=…`"
            )
        if name is None:
            raise ManifestError(
                f"{path} has {len(names)} grids; name one of them: {shown} (`name`, as in grid.name={names[0]})"
            )
        raise ManifestError(f"{path} has no grid '{name}'; it has {shown}")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def _of_file(self, name: str) -> EmbeddingGrid:
        file = f"{GRIDS_FOLDER}/{name}.npz"
        check_files(self.path, self.manifest.model_copy(update={"files": {file: self.manifest.files[file]}}))
        return _of_npz(self.path / file)

    def _of_records(self, name: str, token: int | None) -> EmbeddingGrid:
        """One token, taken before anything is widened to fp32: all tokens of a slide may be many; or all of them."""
        info, tokens, where = self.manifest.info, Tokens.of(self.manifest.info), f"{self.path}: {name}"
        if token is not None and not 0 <= token < tokens.count:
            raise ManifestError(f"{self.path} has {tokens} an image, numbered from 0; there is no token {token}")
        rows = self.cells(name)
        embeddings = np.empty((len(rows["row"]), tokens.count, info["dim"]), np.float16)
        records, (shards, of_cell) = np.array(rows["record"], np.int64), np.unique(rows["shard"], return_inverse=True)
        for number, shard in enumerate(shards.tolist()):
            own = np.flatnonzero(of_cell == number)
            self._reader(shard).gather(records[own], embeddings, own)
        row, column, x, y = (np.array(rows[key], np.int64) for key in ("row", "column", "x", "y"))
        shape = (int(info["grids"][name][0]), int(info["grids"][name][1]))
        facts: dict[str, Any] = {
            key: values[0] if len(values := list(set(rows[key]))) == 1 else None for key in ("mpp", "label")
        }
        order = tokens.order
        if token is not None or tokens.count == 1:
            embeddings, order = embeddings[:, token or 0], order and (order[token or 0],)
        cells = Cells(name, embeddings, row, column, x, y, **facts, shape=shape)
        return replace(_of_cells(cells, where), encoder_hash=info["encoder_hash"], token_order=order)

    @cached_property
    def _index(self) -> tuple[pa.Table, dict[str, Int64[np.ndarray, " n"]]]:
        """The rows with a cell, and which of them each slide has."""
        placed = pc.field("row").is_valid() & pc.field("slide").is_valid()
        table = pq.read_table(RunDir(self.path).index, columns=_COLUMNS, filters=placed).combine_chunks()
        slides = table["slide"].combine_chunks().dictionary_encode()
        order = np.argsort(slides.indices, kind="stable")
        bounds = np.searchsorted(np.asarray(slides.indices)[order], np.arange(1, len(slides.dictionary)))
        return table, dict(zip(slides.dictionary.to_pylist(), np.split(order, bounds), strict=False))

    def _reader(self, shard: str) -> RecordReader:
        reader = self._readers.get(shard)
        if reader is None:
            reader = RecordReader(RunDir(self.path).shards / shard)
            reader.keep_offsets()
            self._readers[shard] = reader
        return reader


def _of_cells(cells: Cells, where: str) -> EmbeddingGrid:
    """Cells in their places.

    Raises:
        DataError: two of them in one place, or as `checked`.
    """
    rows, columns = cells.row, cells.column
    if not len(rows):
        raise DataError(
            f"{where}: no cell{f' of {cells.shape[0]} × {cells.shape[1]}' if cells.shape else ''} is present"
        )
    shape = cells.shape or (int(rows.max()) + 1, int(columns.max()) + 1)
    _, first, counts = np.unique(rows * shape[1] + columns, return_index=True, return_counts=True)
    if (counts > 1).any():
        twice = first[counts > 1]
        named = named_cells(np.stack([rows[twice], columns[twice]], axis=1))
        raise DataError(f"{where}: {len(twice)} cells have more than one embedding: {named}")

    def placed(values: np.ndarray, empty: int) -> np.ndarray:
        filled = np.full((*shape, *values.shape[1:]), empty, values.dtype)
        filled[rows, columns] = values
        return filled

    present = placed(np.ones(len(rows), np.bool_), 0)
    grid = EmbeddingGrid(
        cells.name,
        placed(cells.embeddings.astype(np.float32), 0),
        present,
        placed(cells.x, UNKNOWN_PX),
        placed(cells.y, UNKNOWN_PX),
        cells.mpp,
        cells.label,
    )
    return checked(grid, where)
