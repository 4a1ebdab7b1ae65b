"""Barriers between processes, on any machines, that share a folder and nothing else. No torch here.

Used by stages that need no torch. What an earlier attempt left in the folder is never mistaken for this one's: rank 0
opens a session, every process signs into it with a token of its own, and all later files carry the session's name.
"""

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from hdtrain.distributed.world import World
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_json

_FIRST_PAUSE_SEC, _LAST_PAUSE_SEC = 0.005, 0.5
SAY_EVERY_SEC = 30.0


class Rendezvous:
    """`with Rendezvous(…) as meeting`, and in it `barrier` by name, the same ones in every process.

    Rank 0 leaves the `with` block last, and may then remove the folder. An exception in one process's block ends the
    waiting of all.
    """

    def __init__(self, folder: Path, world: World):
        self.folder, self.world = folder, world
        self.session = uuid.uuid4().hex[:12] if world.is_main else ""

    def __enter__(self) -> "Rendezvous":
        try:
            self._join()
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        elif self.world.size > 1:
            self._leave()

    def _join(self) -> None:
        """Meet all processes of this attempt."""
        if self.world.size == 1:
            return
        if not self.world.is_main:
            token = uuid.uuid4().hex
            self._until(lambda: self._signed_in(token), "rank 0 to begin")
            return
        write_json(self.folder / "session.json", {"session": self.session})
        members: dict[int, str] = {}

        def complete() -> bool:
            for rank in self._others - members.keys():
                member = _read(self.folder / f"member-{rank}.json")
                if member.get("session") == self.session:
                    members[rank] = member["token"]
            return len(members) == len(self._others)

        self._until(complete, f"the {len(self._others)} other processes to begin")
        write_json(self._path("joined", 0), {"tokens": sorted(members.values())})

    def _signed_in(self, token: str) -> bool:
        """Sign into the session that is open now, which may replace one that an earlier attempt left there."""
        session = _read(self.folder / "session.json").get("session", "")
        if session != self.session:
            self.session = session
            write_json(self.folder / f"member-{self.world.rank}.json", {"session": session, "token": token})
        return token in _read(self._path("joined", 0)).get("tokens", [])

    def barrier(self, name: str) -> None:
        """Wait until every process is here.

        Raises:
            HdtrainError: another process of this attempt failed; with its message.
        """
        if self.world.size == 1:
            return
        if not self.world.is_main:
            write_json(self._path(name, self.world.rank), {})
            self._until(lambda: self._path(name, 0).exists(), f"the others at '{name}'")
            return
        self._await_others(name)
        write_json(self._path(name, 0), {})

    def _leave(self) -> None:
        """The others say that they need the folder no more; rank 0 waits for that."""
        if self.world.is_main:
            self._await_others("left")
        else:
            write_json(self._path("left", self.world.rank), {})

    def _await_others(self, name: str) -> None:
        missing = set(self._others)

        def complete() -> bool:
            missing.difference_update([rank for rank in missing if self._path(name, rank).exists()])
            return not missing

        self._until(complete, f"{len(missing)} processes at '{name}'")

    def _fail(self, error: BaseException) -> None:
        """Tell the others, who would wait for ever."""
        if self.world.size > 1 and self.session:
            with contextlib.suppress(OSError):
                write_json(self._path("failed", 0), {"message": str(error)})

    @property
    def _others(self) -> set[int]:
        return set(range(self.world.size)) - {self.world.rank}

    def _path(self, name: str, rank: int) -> Path:
        return self.folder / f"{self.session}-{name}-{rank}.json"

    def _until(self, done: Callable[[], bool], what: str) -> None:
        pause, said = _FIRST_PAUSE_SEC, time.monotonic()
        while not done():
            failed = _read(self._path("failed", 0)) if self.session else {}
            if failed:
                raise HdtrainError(failed["message"] or "another process failed; its log says why")
            time.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE_SEC)
            if time.monotonic() - said > SAY_EVERY_SEC:
                said = time.monotonic()
                print(f"rank {self.world.rank}: waiting for {what}", file=sys.stderr)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
