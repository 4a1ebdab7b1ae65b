"""Who works on which unit of a run: processes of any jobs and machines that share a folder, nothing else. No torch.

`claims/UNIT.claim` names a worker; the file is made with O_EXCL, so only one process makes it. Beside it every worker
replaces its `worker-TOKEN.json` every few seconds for as long as it lives. The clocks of two hosts may differ, so a
worker counts as dead when its file has not changed for `LEASE_SEC` of the watcher's own clock, or its process is gone
from this host.

A claim saves work; it does not guard the result. Two processes may hold one unit for a moment (a worker that was taken
for dead was only slow): whatever they make must be the same bytes, and be published by rename.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from hdtrain.config.base import Config
from hdtrain.formats.heartbeats import GONE, process_state, read_bytes

INTERVAL_SEC = 5.0
"""Between two words of a worker."""
LEASE_SEC = float(os.environ.get("HDTRAIN_LEASE_SEC", 60))
"""A worker on another host that says nothing for so long has lost its units."""


class WorkerState(Config):
    """What a worker says of itself; `written` is unix seconds of its own clock."""

    token: str
    host: str
    pid: int
    rank: int = 0
    beat: int = 0
    step: str = ""
    """What is done at present, as its progress display has it."""
    step_number: int = 0
    """Of this worker's steps so far: the further ones count."""
    makes_shards: bool = False
    """The units of this step are the run's shards."""
    unit: str = ""
    """What it works on."""
    unit_images: int = 0
    """Of which so many are done."""
    whole_images: int = 0
    """Of the units that are done, whoever made them, as far as it knows."""
    images: int = 0
    """All that it has done."""
    images_per_sec: float = 0.0
    total_images: int = 0
    """Of the whole step, whoever makes them."""
    started: float = 0.0
    written: float = 0.0


@dataclass
class Claims:
    """One process's claims; a context, in which it says every few seconds that it lives.

    Args:
        folder: where the claims of the run lie.
        rank: of this process in its job.
        lease_sec: how long another worker may be silent.
    """

    folder: Path
    rank: int = 0
    lease_sec: float = LEASE_SEC
    interval_sec: float = INTERVAL_SEC
    state: WorkerState = field(init=False)
    _held: set[str] = field(default_factory=set)
    _watched: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of other workers: the last beat seen, and when it was first seen, by our monotonic clock."""

    def __post_init__(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        token = f"{host}-{pid}-{uuid.uuid4().hex[:8]}"
        self.state = WorkerState(token=token, host=host, pid=pid, rank=self.rank, started=time.time())
        self._saying = threading.Lock()
        self._over, self._thread = threading.Event(), threading.Thread(target=self._beat, daemon=True)

    @property
    def token(self) -> str:
        """Unique to this process."""
        return self.state.token

    def __enter__(self) -> "Claims":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # another may have removed the folder when all was published
            for name in list(self._held):
                self.release(name)
            _worker_path(self.folder, self.token).unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Claim a unit; False where a living worker has it."""
        path = self._path(name)
        if not self._make(path):
            owner = read_bytes(path).decode(errors="replace")
            if not owner and not path.exists():  # released in this moment
                return False
            if owner == self.token:
                return True
            if not self._is_dead(owner or f"nameless {name}"):
                return False
            aside = path.with_name(f".{name}.{self.token}.stale")
            try:
                path.rename(aside)  # only one of those who want it succeeds
            except FileNotFoundError:
                return False
            aside.unlink(missing_ok=True)
            if not self._make(path):
                return False
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a unit back, done or not."""
        self._held.discard(name)
        path = self._path(name)
        if self.holds(name):
            path.unlink(missing_ok=True)

    def holds(self, name: str) -> bool:
        """Whether a unit is still this worker's: it may have been taken for dead."""
        return read_bytes(self._path(name)).decode(errors="replace") == self.token

    def _make(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(self.token.encode())
        return True

    def _is_dead(self, token: str) -> bool:
        found = _parse(read_bytes(_worker_path(self.folder, token)))
        if found and found.host == self.state.host and process_state(found.pid) == GONE:
            return True
        beat, now = found.beat if found else -1, time.monotonic()
        seen, since = self._watched.setdefault(token, (beat, now))
        if seen != beat:
            self._watched[token] = (beat, now)
            return False
        return now - since > self.lease_sec

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _beat(self) -> None:
        while not self._over.wait(self.interval_sec):
            with contextlib.suppress(OSError):  # a full disk, or a server that is away: the next one may arrive
                self.say()

    def say(self) -> None:
        """Tell the others now, and not with the next word."""
        with self._saying:
            self.state = self.state.model_copy(update={"beat": self.state.beat + 1, "written": time.time()})
            path = _worker_path(self.folder, self.token)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(self.state.model_dump_json())
            temporary.replace(path)

    def tell(self, **changes: object) -> None:
        """Change what the next word says, by the names of `WorkerState`."""
        with self._saying:
            self.state = self.state.model_copy(update=changes)


def read_workers(folder: Path) -> Iterator[WorkerState]:
    """What every worker said last, those included that died without a word."""
    for path in sorted(folder.glob("worker-*.json")):
        found = _parse(read_bytes(path))
        if found:
            yield found


def _parse(data: bytes) -> WorkerState | None:
    try:
        return WorkerState.model_validate_json(data)
    except ValidationError:
        return None


def _worker_path(folder: Path, token: str) -> Path:
    return folder / f"worker-{token}.json"
