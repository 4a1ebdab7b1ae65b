"""Published shards to shards of another size or order: every sample's bytes and `KEY.json` as they are."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hdtrain.config.shards import ReshardConfig
from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.world import World
from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.index import SCHEMA, IndexWriter
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardReader, ShardWriter, Sidecar, is_complete, open_shards, sidecar_path
from hdtrain.progress import Progress, track
from sharding.inputs import key_hash

_OPEN_SHARDS = 64


class Resharding:
    """The samples of all data sets as one list, in a new order, cut anew. The same in every process."""

    def __init__(self, config: ReshardConfig, datasets: Sequence[tuple[Path, Manifest]], run: RunDir):
        self.config, self.datasets, self.run = config, datasets, run
        self._paths = [reader.path for path, manifest in datasets for reader in open_shards(path, manifest)]
        self._ends = np.cumsum([entry.samples for _, manifest in datasets for entry in manifest.shards])
        total = int(self._ends[-1])
        generator = np.random.Generator(np.random.PCG64(config.seed))
        self.order: NDArray[np.int64] = generator.permutation(total) if config.shuffle else np.arange(total)
        self._reader = lru_cache(maxsize=_OPEN_SHARDS)(ShardReader)

    @property
    def shards(self) -> list[Path]:
        """The new shards."""
        count = -(-len(self.order) // self.config.samples_per_shard)
        return [self.run.shards / f"shard-{number:06d}.tar" for number in range(count)]

    def check_share(self, world: World) -> None:
        """Read this process's part of the old shards: what is damaged must not get a new checksum.

        Raises:
            ShardError: a shard is missing or altered.
        """
        entries = [(directory, entry) for directory, manifest in self.datasets for entry in manifest.shards]
        mine = world.share(entries)
        for directory, entry in track(mine, len(mine), "check", "shard") if world.is_main else mine:
            path = directory / entry.name
            if not path.is_file() or sha256_file(path) != entry.sha256:
                raise ShardError(
                    f"{path} is missing or altered since it was written; `hdtrain verify` says what is hit"
                )

    def write_share(self, world: World) -> None:
        """Write this process's shards, those that are complete left as they are."""
        size = self.config.samples_per_shard
        mine = [(number, path) for number, path in world.share(list(enumerate(self.shards))) if not is_complete(path)]
        total = sum(len(self.order[number * size : (number + 1) * size]) for number, _ in mine)
        with Progress("reshard", total, enabled=world.is_main) as progress:
            for number, path in mine:
                with ShardWriter(path) as writer:
                    for reader, sample in self._located(self.order[number * size : (number + 1) * size]):
                        sidecar = reader.sidecar
                        image = bytes(reader.image(sample))
                        key, ext, label = sidecar.keys[sample], sidecar.exts[sample], sidecar.labels[sample]
                        writer.add(key, ext, image, reader.meta(sample), label)
                        progress.update(1)

    def _located(self, rows: NDArray[np.int64]) -> Iterator[tuple[ShardReader, int]]:
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends])[shards]
        for shard, sample in zip(shards.tolist(), (rows - starts).tolist(), strict=True):
            yield self._reader(self._paths[shard]), sample

    def write_index(self) -> None:
        """The data sets' indices, one after the other, with the new shards; a data set without one has no rows."""
        keys, shards = self._hashes()
        by_key = np.argsort(keys)
        sorted_keys = keys[by_key]
        with IndexWriter(self.run.index) as writer:
            for path, _ in self.datasets:
                index = RunDir(path).index
                for batch in pq.ParquetFile(index).iter_batches() if index.exists() else ():
                    rows = batch.to_pylist()
                    for row in rows:
                        if row["status"] == "ok":
                            place = by_key[np.searchsorted(sorted_keys, np.uint64(key_hash(row["key"])))]
                            row["shard"] = f"shard-{shards[place]:06d}.tar"
                    writer.write(pa.Table.from_pylist(rows, schema=SCHEMA))

    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The hash of every key in the old order, and the number of its new shard.

        Raises:
            ShardError: a key is in two of the data sets.
        """
        keys = np.array([key_hash(key) for path in self._paths for key in Sidecar.read(sidecar_path(path)).keys], "u8")
        if len(np.unique(keys)) < len(keys):
            names = ", ".join(str(path) for path, _ in self.datasets)
            raise ShardError(f"the same key is in two of {names}; `hdtrain verify` with disjoint_from names it")
        shards = np.empty(len(keys), np.int64)
        shards[self.order] = np.arange(len(keys)) // self.config.samples_per_shard
        return keys, shards


def reshard(config: ReshardConfig, datasets: Sequence[tuple[Path, Manifest]], run: RunDir, world: World) -> list[Path]:
    """Write the new shards and their index; every process of `world` calls it. Returns the shards, in order."""
    run.work.mkdir(parents=True, exist_ok=True)
    with Rendezvous(run.work / "processes", world) as meeting:
        work = Resharding(config, datasets, run)
        work.check_share(world)
        meeting.barrier("checked")
        if world.is_main:
            work.write_index()
        work.write_share(world)
        meeting.barrier("written")
        return work.shards
