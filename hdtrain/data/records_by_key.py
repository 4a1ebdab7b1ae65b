"""Records by the key of the image that they are of: embeddings to train and sample with, latents to begin from."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64

from hdtrain.config.training import ShardAccess
from hdtrain.data.order import groups
from hdtrain.data.pool import ShardPool
from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.records import RecordReader
from hdtrain.text import counted, first_few

FLIPPED = "-flip"
"""End of the key of a mirrored image's latent: it has the embedding of the image as it is (method, section 9)."""


class RecordsByKey:
    """Published records, found by a hash of their key. Resident are 16 bytes a record; the records stay on disk.

    Args:
        datasets: run directories with their manifests.
        field: of the manifest, whose records these are: `embedding`, `moments`.
        capacity: shards that stay open.
        access: where shards lie that are not in the data sets' folders.

    Raises:
        ManifestError: the data sets have records of different shapes.
        DataError: two records have one key, or there are none.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[Path, Manifest]],
        field: str,
        capacity: int = 8,
        access: ShardAccess | None = None,
    ):
        shapes = {tuple(int(n or 0) for n in manifest.fields[field].shape) for _, manifest in datasets}
        self._where = ", ".join(str(path) for path, _ in datasets)
        if len(shapes) != 1:
            raise ManifestError(f"{self._where}: {field} of different shapes cannot be used together: {sorted(shapes)}")
        self.shape = shapes.pop()
        self._shards = ShardPool(datasets, access or ShardAccess(), capacity, RecordReader)
        self._hashes, self._places = self._index()
        if not len(self):
            raise DataError(f"{self._where}: holds no {field} at all")

    def __len__(self) -> int:
        return len(self._hashes)

    def listing(self) -> tuple[list[str], list[int]]:
        """Keys and labels (−1: unlabelled) of all records, in the order of the shards."""
        keys: list[str] = []
        labels: list[int] = []
        for number in range(len(self._shards.places)):
            with self._shards.use(number) as opened:
                keys += opened.keys
                labels += opened.labels.tolist()
        return keys, labels

    @cached_property
    def _label_of(self) -> Mapping[str, int]:
        return dict(zip(*self.listing(), strict=True))

    def keys(self) -> list[str]:
        """Of all records, in the order of the shards; from here on keys and labels are resident."""
        return list(self._label_of)

    def label(self, key: str) -> int:
        """Of a record, −1: unlabelled; resident as of `keys`.

        Raises:
            KeyError: there is no such record.
        """
        return self._label_of[key]

    def __call__(self, keys: Sequence[str]) -> Float16[np.ndarray, "n ..."]:
        """The records of images, as they are stored.

        Raises:
            DataError: some have none; the first are named.
            ShardError: a shard is missing or damaged.
        """
        shards, records = self._locate(keys)
        if (shards < 0).any():
            raise self._missing([key for key, shard in zip(keys, shards, strict=True) if shard < 0])
        found = np.empty((len(keys), *self.shape), np.float16)
        for shard, rows in groups(shards):
            with self._shards.use(shard) as opened:
                opened.reader.gather(records[rows], found, rows)
        return found

    def check(self, keys: Sequence[str]) -> None:
        """See that all of them are there.

        Raises:
            DataError: some are not; the first are named.
        """
        if missing := self.missing(keys):
            raise self._missing(missing)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those that are not there."""
        shards, _ = self._locate(keys)
        return [key for key, shard in zip(keys, shards, strict=True) if shard < 0]

    def _missing(self, keys: Sequence[str]) -> DataError:
        distinct = list(dict.fromkeys(keys))
        return DataError(
            f"{self._where}: nothing of {counted(len(distinct), 'image')} ({first_few(distinct)}); it must be made of "
            "the same images, so run the stage that made it on them, and name all its runs"
        )

    def _locate(self, keys: Sequence[str]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Shard and record of every key; −1 where there is none."""
        at, there = self._look_up([hash(key) for key in keys])
        mirrored, there_mirrored = self._look_up([hash(key.removesuffix(FLIPPED)) for key in keys])
        at, there = np.where(there, at, mirrored), there | there_mirrored
        places = np.where(there[:, None], self._places[at].astype(np.int64), -1)
        return places[:, 0], places[:, 1]

    def _look_up(self, hashes: Sequence[int]) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
        wanted = np.array(hashes, np.int64)
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return at, self._hashes[at] == wanted

    def _index(self) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
        """Python's hash of every key, ascending, with shard and record of each."""
        hashes, places = [np.empty(0, np.int64)], [np.empty((0, 2), np.int32)]
        for number in range(len(self._shards.places)):
            with self._shards.use(number) as opened:
                keys = opened.keys
            hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
            places.append(np.stack([np.full(len(keys), number), np.arange(len(keys))], axis=1).astype(np.int32))
        joined, where = np.concatenate(hashes), np.concatenate(places)
        order = np.argsort(joined, kind="stable")
        joined, where = joined[order], where[order]
        for at in np.flatnonzero(joined[1:] == joined[:-1]):
            first, second = (self._key(*map(int, where[i])) for i in (at, at + 1))
            if first != second:  # of a billion keys, once in 40 tries
                raise DataError(f"{self._where}: {first} and {second} have one hash; start the stage again")
            raise DataError(f"{self._where}: two records of {first}; name each data set once")
        return joined, where

    def _key(self, shard: int, record: int) -> str:
        with self._shards.use(shard) as opened:
            return opened.keys[record]
