"""The shards of one or several data sets, opened when they are needed and closed when others are needed more."""

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int64

from hdtrain.config.training import ShardAccess
from hdtrain.data.ahead import Ahead
from hdtrain.data.cache import CachedShard, RemoteShard, ShardCache
from hdtrain.data.remote import shard_url
from hdtrain.errors import ShardError
from hdtrain.formats.manifest import Manifest, ShardEntry
from hdtrain.formats.shards import ShardReader, sidecar_path

UNLABELLED = -1
DOWNLOADS = 4
"""Shards that are fetched at once ahead of their use."""
Reader = TypeVar("Reader", bound=ShardReader)


class OpenShard(Generic[Reader]):
    """A shard in use."""

    def __init__(self, reader: Reader, cached: CachedShard | None):
        self.reader, self._cached = reader, cached

    @cached_property
    def keys(self) -> list[str]:
        """Of its samples."""
        return self.reader.sidecar.keys

    @cached_property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Of its samples, −1 where unlabelled."""
        return np.array([UNLABELLED if label is None else label for label in self.reader.sidecar.labels], np.int64)

    def close(self) -> None:
        """Let it go."""
        self.reader.close()
        if self._cached is not None:
            self._cached.close()


class _Slot(Generic[Reader]):
    """A place for an open shard; `lock` is held while it is being opened."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.shard: OpenShard[Reader] | None = None


class ShardPool(Generic[Reader]):
    """Shards by number, over all data sets. Safe to share between threads.

    Args:
        datasets: run directories with their manifests.
        access: where shards lie that are not in them.
        capacity: shards that stay open while nobody uses them.
        reader: the kind of shard.

    Raises:
        ShardError: a limit of the cache is too small for what must be open at once.
    """

    def __init__(
        self, datasets: Sequence[tuple[Path, Manifest]], access: ShardAccess, capacity: int, reader: type[Reader]
    ):
        self.places: list[tuple[Path, ShardEntry]] = [
            (directory, entry) for directory, manifest in datasets for entry in manifest.shards
        ]
        self.access, self.capacity, self._reader = access, capacity, reader
        self._slots: OrderedDict[int, _Slot[Reader]] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead = Ahead(self._download, DOWNLOADS)
        if access.url is not None:
            self._check_room(access.cache_max_bytes)

    @cached_property
    def cache(self) -> ShardCache:
        """The node's cache; made when the first shard is not in its folder."""
        return ShardCache(cache_directory(self.access.cache_dir), self.access.cache_max_bytes, self.access.retry_sec)

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[OpenShard[Reader]]:
        """Shard `number`, open for the length of the block.

        Raises:
            ShardError: it is missing, damaged, or cannot be downloaded.
        """
        with self._lock:
            slot = self._slots.setdefault(number, _Slot())
            self._slots.move_to_end(number)
            slot.users += 1
            surplus = self._take_surplus()
        for shard in surplus:
            shard.close()
        try:
            if slot.shard is None:
                with slot.lock:
                    if slot.shard is None:
                        slot.shard = self._open(number)
            yield slot.shard
        finally:
            with self._lock:
                slot.users -= 1

    def _take_surplus(self) -> list[OpenShard[Reader]]:
        """Take out the shards whose use is longest ago, as far as there are too many."""
        excess = len(self._slots) - self.capacity
        if excess <= 0:
            return []
        idle = [number for number, slot in self._slots.items() if slot.users == 0][:excess]
        taken = [self._slots.pop(number).shard for number in idle]
        return [shard for shard in taken if shard is not None]

    def _open(self, number: int) -> OpenShard[Reader]:
        directory, entry = self.places[number]
        remote = self._remote(number)
        if remote is None:
            opened = OpenShard(self._reader(directory / entry.name, retry_sec=self.access.retry_sec), None)
        else:
            cached = self.cache.hold(remote)
            assert cached is not None, "waited for"
            opened = OpenShard(self._reader(cached.tar, cached.sidecar, self.access.retry_sec), cached)
        try:
            sidecar = opened.reader.sidecar
            if sidecar.sha256 != entry.sha256:
                raise ShardError(
                    f"{directory / entry.name}: its sidecar is of another shard (sha256 {sidecar.sha256[:12]}…, the "
                    f"manifest says {entry.sha256[:12]}…); run `hdtrain verify`"
                )
        except ShardError:
            opened.close()
            raise
        return opened

    def _remote(self, number: int) -> RemoteShard | None:
        """Where shard `number` comes from; None where it lies in its folder, or could lie nowhere else."""
        directory, entry = self.places[number]
        url, tar = self.access.url, directory / entry.name
        if url is None or tar.exists():
            return None
        dataset, beside = directory.resolve().name, sidecar_path(tar)
        return RemoteShard(
            entry,
            shard_url(url, dataset, entry.name),
            shard_url(url, dataset, str(sidecar_path(Path(entry.name)))),
            beside if beside.exists() else None,
        )

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Download the shards that are not here, in threads and in this order, as far as the cache holds them all."""
        if self.access.url is None:
            return
        room = self.access.cache_max_bytes
        wanted = []
        for number in numbers:
            room -= self.places[number][1].bytes
            if room < 0:
                break
            wanted.append(number)
        self._ahead.want(wanted)

    def _download(self, number: int) -> None:
        with contextlib.suppress(ShardError):  # whoever needs the shard will meet the error too, and tell it
            remote = self._remote(number)
            cached = self.cache.hold(remote, wait=False) if remote is not None else None
            if cached is not None:
                cached.close()

    def _check_room(self, max_bytes: int) -> None:
        """What the ranks of a node have open at once must fit: some are where others will be in a moment."""
        largest = sorted((entry.bytes for _, entry in self.places), reverse=True)[: 2 * self.capacity]
        if sum(largest) > max_bytes:
            raise ShardError(
                f"cache_max_bytes is {max_bytes}, but {len(largest)} shards with together up to {sum(largest)} bytes "
                "are open at once, those that are read and those that come next; raise it, or lower block_shards"
            )


def cache_directory(given: str | None) -> Path:
    """The folder that `cache_dir` means on this node; by default below $TMPDIR, one a user.

    Raises:
        ShardError: it names an environment variable that is not set.
    """
    if given is None:
        return Path(tempfile.gettempdir()) / f"hdtrain-shards-{os.getuid()}"
    expanded = os.path.expandvars(given)
    if "$" in expanded:
        raise ShardError(f"cache_dir {given}: the variable is not set on this node")
    return Path(expanded).expanduser()
