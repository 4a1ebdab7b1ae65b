"""A folder on a node's own disk for shards that lie elsewhere, shared by all processes of the node.

A shard's name there is its sha256, so equal shards of two data sets are one file. The folder holds

- `SHA256.tar`: a whole, checked shard; who reads it holds a shared flock on it, and it is not thrown out meanwhile;
- `SHA256.json`: its sidecar, where that had to be fetched too;
- `SHA256.part`: a download; the process that makes it holds an exclusive flock on it, others wait for that. What a
  killed process left has no lock, and whoever needs room or the shard takes it over;
- `.room`: locked while room is made.
"""

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hdtrain.data.locks import hold_whole, is_at, remove_unlocked, stat_of, try_lock
from hdtrain.data.remote import stream
from hdtrain.errors import ShardError
from hdtrain.formats.atomic import write_bytes
from hdtrain.formats.manifest import ShardEntry
from hdtrain.formats.read_files import patiently
from hdtrain.formats.shards import parse_sidecar, sidecar_path

POLL_SEC = 0.05
BRIEFLY_SEC = 0.2
"""Whoever looks for leftovers holds a lock for a moment; longer means a download."""
TELL_AFTER_SEC = 10.0
"""A wait for another process is told after so long, and again each time it has doubled."""


class NoRoomError(ShardError):
    """The cache is full of shards that are being read."""


@dataclass(frozen=True)
class RemoteShard:
    """A shard that lies elsewhere: the manifest's line, and where tar and sidecar come from."""

    entry: ShardEntry
    url: str
    sidecar_url: str
    sidecar: Path | None = None
    """The sidecar, where that was copied here."""


@dataclass(frozen=True)
class CachedShard:
    """A shard in the cache, which stays there until `close`."""

    tar: Path
    sidecar: Path
    _lock: int

    def close(self) -> None:
        """Let it go."""
        os.close(self._lock)


class ShardCache:
    """One process's view of the folder.

    Args:
        directory: the folder; made if it is not there. Its disk must know flock, as a node's own does.
        max_bytes: what may lie in it.
        retry_sec: for how long a download that fails is tried again, and how long room is waited for.

    Raises:
        ShardError: the folder cannot be made.
    """

    def __init__(self, directory: Path, max_bytes: int, retry_sec: float):
        self.directory, self.max_bytes, self.retry_sec = directory, max_bytes, retry_sec
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._room_lock():
                self._remove_leftovers()
        except OSError as error:
            raise ShardError(
                f"cache_dir {directory}: {error.strerror or error}; name a folder on the node's own disk that you may "
                "write to"
            ) from None

    def hold(self, shard: RemoteShard, wait: bool = True) -> CachedShard | None:
        """A shard, downloaded if it is not there, checked, and kept from being thrown out.

        Args:
            shard: which.
            wait: whether to wait for another process that downloads it, for room, and to try again what fails.

        Returns:
            None only without `wait`.

        Raises:
            ShardError: it cannot be downloaded or is not what the manifest says.
            NoRoomError: shards that are being read leave no room for it.
        """
        tar = self.directory / f"{shard.entry.sha256}.tar"
        sidecar = shard.sidecar or sidecar_path(tar)
        retry_sec = self.retry_sec if wait else 0.0
        while True:
            lock = hold_whole(tar)
            if lock is not None and sidecar.exists():
                return CachedShard(tar, sidecar, lock)
            if lock is not None:
                os.close(lock)
            with self._downloading(shard, wait) as part:
                if part is None:
                    return None
                self._download(shard, tar, sidecar, part, retry_sec)

    def _download(self, shard: RemoteShard, tar: Path, sidecar: Path, part: int, retry_sec: float) -> None:
        """Sidecar and tar, as far as they are missing; `part` is the tar's locked download file."""
        listing = b""
        if not sidecar.exists():
            listing = patiently(lambda: _fetch_sidecar(shard), shard.sidecar_url, retry_sec)
        missing = not tar.exists()
        if missing:
            self._make_room(shard, len(listing), part, retry_sec)
        if listing:
            self._store(lambda: write_bytes(sidecar, listing))
        if missing:
            os.ftruncate(part, shard.entry.bytes)  # the sidecar has its share of the room now
            patiently(lambda: self._fetch_tar(shard, part), shard.url, retry_sec)
            with self._room_lock():  # whoever counts must not miss it
                self._part(shard).rename(tar)

    def _part(self, shard: RemoteShard) -> Path:
        return self.directory / f"{shard.entry.sha256}.part"

    @contextlib.contextmanager
    def _downloading(self, shard: RemoteShard, wait: bool) -> Iterator[int | None]:
        """The open, locked download file of a shard; None where another process has it and we do not wait."""
        path = self._part(shard)
        told, started = TELL_AFTER_SEC, time.monotonic()
        while True:
            part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if try_lock(part) and is_at(part, path):
                    try:
                        yield part
                    finally:
                        if is_at(part, path):  # not renamed: it failed, or the shard was there
                            path.unlink()
                    return
                waited = time.monotonic() - started
                if not wait and waited > BRIEFLY_SEC:
                    yield None
                    return
                if waited > told:
                    told *= 2
                    have = os.fstat(part).st_blocks * 512  # its size is the room that it has taken
                    print(
                        f"waiting for {shard.url}, which another process of this node is downloading: "
                        f"{have / 2**20:.0f} of {shard.entry.bytes / 2**20:.0f} MiB after {waited:.0f} s",
                        file=sys.stderr,
                    )
            finally:
                os.close(part)
            time.sleep(POLL_SEC)

    def _fetch_tar(self, shard: RemoteShard, part: int) -> None:
        digest, done, entry = hashlib.sha256(), 0, shard.entry
        with contextlib.closing(stream(shard.url)) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                if done + len(chunk) > entry.bytes:
                    raise OSError(f"more than the {entry.bytes} bytes that the manifest says of {entry.name}")
                self._store(lambda chunk=chunk, done=done: _write_all(part, chunk, done))  # type: ignore[misc]
                done += len(chunk)
        if (done, digest.hexdigest()) != (entry.bytes, entry.sha256):
            raise OSError(
                f"{done} bytes with sha256 {digest.hexdigest()[:12]}…, the manifest says {entry.bytes} with "
                f"{entry.sha256[:12]}… for {entry.name}: another data set, or damaged on the way"
            )
        self._store(lambda: os.fsync(part))

    def _store(self, write: Callable[[], None]) -> None:
        """`write`, whose failure no other try will mend."""
        try:
            write()
        except OSError as error:
            raise ShardError(
                f"cache_dir {self.directory}: {error.strerror or error}; make room there, lower cache_max_bytes "
                f"({self.max_bytes}), or name another folder"
            ) from None

    def _make_room(self, shard: RemoteShard, beside: int, part: int, retry_sec: float) -> None:
        """Throw out shards, the one whose use is longest ago first, and take the room for this one.

        Args:
            shard: which.
            beside: bytes of its sidecar, where that comes too.
            part: its download file.
            retry_sec: for how long room is waited for.
        """
        deadline = time.monotonic() + retry_sec
        while not self._made_room(shard.entry.bytes + beside, part):
            if time.monotonic() >= deadline:
                raise NoRoomError(
                    f"cache_dir {self.directory}: no room for {shard.url} ({shard.entry.bytes} bytes): all else in its "
                    f"cache_max_bytes ({self.max_bytes}) is being read; raise cache_max_bytes or lower block_shards"
                )
            time.sleep(POLL_SEC)

    def _made_room(self, num_bytes: int, part: int) -> bool:
        with self._room_lock():
            os.ftruncate(part, 0)  # what a killed process left in it
            self._remove_leftovers()
            files = {path: stat for path in self.directory.iterdir() if (stat := stat_of(path))}
            excess = sum(stat.st_size for stat in files.values()) + num_bytes - self.max_bytes
            for tar in sorted((path for path in files if path.suffix == ".tar"), key=lambda path: files[path].st_mtime):
                if excess <= 0:
                    break
                if remove_unlocked(tar, sidecar_path(tar)):
                    excess -= sum(files[path].st_size for path in (tar, sidecar_path(tar)) if path in files)
            if excess <= 0:
                os.ftruncate(part, num_bytes)  # from now on others count it
            return excess <= 0

    @contextlib.contextmanager
    def _room_lock(self) -> Iterator[None]:
        with (self.directory / ".room").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_leftovers(self) -> None:
        """Downloads of processes that were killed, and sidecars whose shard never came."""
        for part in self.directory.glob("*.part"):
            remove_unlocked(part)
        for sidecar in [*self.directory.glob("*.json"), *self.directory.glob(".*.json.tmp")]:
            digest = sidecar.name.strip(".").partition(".")[0]
            if not any((self.directory / f"{digest}{suffix}").exists() for suffix in (".part", ".tar")):
                sidecar.unlink(missing_ok=True)


def _fetch_sidecar(shard: RemoteShard) -> bytes:
    data = b"".join(stream(shard.sidecar_url))
    found, entry = parse_sidecar(data, shard.sidecar_url), shard.entry
    if (found.sha256, found.samples) != (entry.sha256, entry.samples):
        raise ShardError(
            f"{shard.sidecar_url}: sidecar of another shard: sha256 {found.sha256[:12]}… and {found.samples} "
            f"samples; the manifest says {entry.sha256[:12]}… and {entry.samples} for {entry.name}"
        )
    return data


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
