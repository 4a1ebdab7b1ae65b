"""`heartbeats/rank-00003.json`: what each rank of a training says of itself every few seconds, and who may read it.

The watchdog of another rank (`hdtrain.distributed.watchdog`) and `hdtrain status` read these files. A file is replaced
by rename, without fsync: what a power cut loses of it nobody misses. The clocks of two hosts may differ, so a reader
that wants to know whether a rank lives watches whether its file changes.
"""

import re
from pathlib import Path

from pydantic import Field, ValidationError

from hdtrain.config.base import Config

_NAME = re.compile(r"rank-(\d{5})\..*")
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or file server (D)",
    "T": "stopped by a signal (T)",
    "t": "stopped by a debugger (t)",
    "Z": "dead (Z)",
    "X": "dead (X)",
}
GONE = "gone"


class ThreadStack(Config):
    """Where one thread stood: `FUNCTION (FILE:LINE)`, the most recent call last."""

    name: str
    frames: list[str]


class Heartbeat(Config):
    """One rank's word; times are unix seconds of its own clock."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    """What it does: "waiting for data", "computing", …"""
    beat: int
    """The beats that it has made at this step. (step, beat) says which of two ranks is ahead."""
    beat_time: float
    idle_sec: float
    """Since that beat, when this was written."""
    written: float
    interval_sec: float
    """To the next word."""
    timeout_sec: float
    """After so long without a beat of any rank the run ends."""
    left: bool = False
    """It has left the training loop."""
    threads: list[ThreadStack] = Field(default_factory=list)
    """The main thread first."""

    @property
    def place(self) -> tuple[int, int]:
        """Greater is further."""
        return self.step, self.beat


def heartbeat_path(folder: Path, rank: int) -> Path:
    """A rank's file."""
    return folder / f"rank-{rank:05d}.json"


def dump_path(folder: Path, rank: int) -> Path:
    """Stacks that a rank writes without Python's help when it cannot even write its heartbeat."""
    return folder / f"rank-{rank:05d}.stacks"


def write_heartbeat(folder: Path, heartbeat: Heartbeat) -> None:
    """Replace a rank's file.

    Raises:
        OSError: the disk is full, or its server is away.
    """
    path = heartbeat_path(folder, heartbeat.rank)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(heartbeat.model_dump_json())
    temporary.replace(path)


def parse_heartbeat(data: bytes) -> Heartbeat | None:
    """A file's content as a heartbeat; None where it is none."""
    try:
        return Heartbeat.model_validate_json(data)
    except ValidationError:
        return None


def read_bytes(path: Path) -> bytes:
    """A file's content; nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Those of all ranks, by rank; what is no heartbeat is left out."""
    found = (parse_heartbeat(read_bytes(path)) for path in sorted(folder.glob("rank-*.json")))
    return [heartbeat for heartbeat in found if heartbeat]


def clear(folder: Path, world_size: int) -> None:
    """Remove the heartbeats of an earlier attempt; the ranks of this one write theirs again within seconds."""
    for path in folder.glob("rank-*"):
        rank = _NAME.fullmatch(path.name)
        if path.suffix == ".json" or (rank and int(rank[1]) >= world_size):
            path.unlink(missing_ok=True)


def process_state(pid: int) -> str:
    """What Linux says of a process of this host, of its main thread: `stopped by a signal (T)`; `gone` without it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return GONE
    return _STATES.get(letter, letter)
