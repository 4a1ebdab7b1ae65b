"""The wider region around a tile, put together from its neighbours in the same slide and data sets.

Tiles must neither overlap nor leave gaps: a step of the lattice is a tile. What is not there, or is broken, is white.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from hdtrain.config.load import read_yaml
from hdtrain.config.training import ShardAccess
from hdtrain.data.decode import decode_rgb
from hdtrain.data.pool import ShardPool
from hdtrain.data.tile_places import NONE, TilePlaces
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardReader

WHITE = 255
_OPEN_SHARDS = 16
Image = UInt8[np.ndarray, "h w 3"]


class TileContext:
    """Contexts of tiles. Safe to share between threads.

    Args:
        datasets: run directories of kind `images` with their manifests.
        places: of their tiles.
        access: where shards lie that are not in them.
        cache_bytes: decoded tiles that are kept.

    Raises:
        DataError: two tiles lie in one place, or were cut with another stride than their width.
    """

    def __init__(
        self, datasets: Sequence[tuple[Path, Manifest]], places: TilePlaces, access: ShardAccess, cache_bytes: int
    ):
        for directory, _ in datasets:
            _check_stride(directory)
        self._places = places
        self._pool = ShardPool(datasets, access, _OPEN_SHARDS, ShardReader)
        self._tiles = _Kept(cache_bytes)
        self._columns = np.array([places.lattices[s].columns if s in places.lattices else 0 for s in places.slides])
        sizes = [
            places.lattices[s].rows * places.lattices[s].columns if s in places.lattices else 0 for s in places.slides
        ]
        self._first = np.cumsum([0, *sizes])
        packed = np.flatnonzero((places.row != NONE) & (places.shard != NONE))
        codes = self._code(packed, places.row[packed], places.column[packed])
        order = np.argsort(codes)
        self._codes, self._rows = codes[order], packed[order]
        twice = np.flatnonzero(self._codes[1:] == self._codes[:-1])
        if len(twice):
            pair = " and ".join(self._key(int(self._rows[i])) for i in (twice[0], twice[0] + 1))
            raise DataError(
                f"{len(twice)} tiles lie where another one does, as {pair}; views with a context need one tile in a "
                "place: give one data set, cut at one resolution"
            )

    def around(self, row: int, tile: Image, times: int) -> Image:
        """The region `times` as wide and high as the tile, with the tile in its middle.

        Args:
            row: of the tile in the places.
            tile: its pixels.
            times: N of `context-N`.

        Raises:
            DataError: the tile has no place on a lattice, or a neighbour another size.
            ShardError: a neighbour's shard is missing or damaged.
        """
        if row == NONE or self._places.row[row] == NONE:
            raise self._no_place(row)
        reach = math.ceil((times - 1) / 2)
        height, width = tile.shape[:2]
        canvas = np.full(((2 * reach + 1) * height, (2 * reach + 1) * width, 3), WHITE, np.uint8)
        for down in range(-reach, reach + 1):
            for across in range(-reach, reach + 1):
                there = tile if (down, across) == (0, 0) else self._neighbour(row, down, across)
                if there is None:
                    continue
                if there.shape != tile.shape:
                    raise DataError(
                        f"{self._key(row)}: a neighbour in the slide is {there.shape[1]} × {there.shape[0]} px, the "
                        f"tile {width} × {height}; views with a context need tiles of one size"
                    )
                top, left = (reach + down) * height, (reach + across) * width
                canvas[top : top + height, left : left + width] = there
        top, left = ((2 * reach + 1 - times) * side // 2 for side in (height, width))
        return canvas[top : top + times * height, left : left + times * width]

    def check(self, rows: Int64[np.ndarray, " n"], keys: Sequence[str]) -> None:
        """Refuse tiles without a place.

        Raises:
            DataError: names the first.
        """
        for row, key in zip(rows.tolist(), keys, strict=True):
            if row == NONE or self._places.row[row] == NONE:
                raise self._no_place(row, key)

    def _neighbour(self, row: int, down: int, across: int) -> Image | None:
        """The tile so many cells away; None where there is none."""
        places, slide = self._places, int(self._places.slide_codes[row])
        lattice = places.lattices[places.slides[slide]]
        at = int(places.row[row]) + down, int(places.column[row]) + across
        if not (0 <= at[0] < lattice.rows and 0 <= at[1] < lattice.columns):
            return None
        code = int(self._first[slide]) + at[0] * lattice.columns + at[1]
        place = int(np.searchsorted(self._codes, code))
        if place == len(self._codes) or self._codes[place] != code:
            return None
        found = int(self._rows[place])
        known, tile = self._tiles.get(found)
        if not known:
            tile = self._read(found)
            self._tiles.put(found, tile)
        return tile

    def _read(self, row: int) -> Image | None:
        with self._pool.use(int(self._places.shard[row])) as shard:
            try:
                return decode_rgb(shard.reader.image(shard.keys.index(self._key(row))))
            except DataError:  # it is counted where its own turn comes
                return None

    def _code(self, rows: np.ndarray, row: np.ndarray, column: np.ndarray) -> Int64[np.ndarray, " n"]:
        slides = self._places.slide_codes[rows]
        return self._first[slides] + row * self._columns[slides] + column

    def _key(self, row: int) -> str:
        return str(self._places.table["key"][row].as_py())

    def _no_place(self, row: int, key: str = "") -> DataError:
        slide = self._places.table["slide"][row].as_py() if row != NONE else None
        why = self._places.off_lattice.get(slide or "", "its slide, x and y are not known")
        return DataError(
            f"{key or (self._key(row) if row != NONE else 'a tile')}: views with a context need its place among the "
            f"tiles of its slide: {why}; leave context-N out of views, or cut slides with `hdtrain shard`"
        )


class _Kept:
    """The most recently used tiles, up to a number of bytes."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._tiles: OrderedDict[int, Image | None] = OrderedDict()

    def get(self, number: int) -> tuple[bool, Image | None]:
        """Whether it is there, and the tile; None for a broken one."""
        with self._lock:
            if number not in self._tiles:
                return False, None
            self._tiles.move_to_end(number)
            return True, self._tiles[number]

    def put(self, number: int, tile: Image | None) -> None:
        """Keep it, and let those go whose use is longest ago."""
        with self._lock:
            if number in self._tiles:
                return
            self._tiles[number] = tile
            self._bytes += tile.nbytes if tile is not None else 0
            while self._bytes > self._max_bytes and self._tiles:
                _, old = self._tiles.popitem(last=False)
                self._bytes -= old.nbytes if old is not None else 0


def _check_stride(directory: Path) -> None:
    """Refuse tiles that overlap or leave gaps, as far as the data set's config (or that of all its splits) says so."""
    for config in (RunDir(directory).config, RunDir(directory.parent).config):
        if not config.is_file():
            continue
        for source in read_yaml(config).get("sources") or []:
            stride, side = source.get("stride_px"), source.get("tile_px")
            if stride is not None and stride != side:
                raise DataError(
                    f"{directory}: its tiles of {side} px were cut every {stride} px; views with a context need tiles "
                    "that neither overlap nor leave gaps: cut them with stride_px null"
                )
        return
