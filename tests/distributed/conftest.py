"""Real ranks, cheaply: `ranks.run("train-ldm", directory, config, ranks=2)`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_chain import prepare

HERE = Path(__file__).parent


class Ranks:
    """The client of `rank_server`."""

    def __init__(self, scratch: Path):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        # This tree's own code first, whatever is installed.
        places = (HERE.parents[1], HERE.parent, HERE, HERE.parent / "unit" / "training")
        variables["PYTHONPATH"] = ":".join(map(str, places))
        self._scratch, self._count = scratch, 0
        self._server = subprocess.Popen(
            [sys.executable, HERE / "rank_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        assert self._answer() == {"ready": True}

    @property
    def pid(self) -> int:
        """Of the server, whose children the ranks are."""
        return self._server.pid

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def _start(self, request: dict[str, Any]) -> list[int]:
        self._count += 1
        self.output = self._scratch / f"{self._count:03d}"
        assert self._server.stdin
        self._server.stdin.write(json.dumps({**request, "output": str(self.output)}) + "\n")
        self._server.stdin.flush()
        pids: list[int] = self._answer()["pids"]
        return pids

    def said(self, lines: int = 50) -> str:
        """The last lines of what the ranks of the last run printed."""
        texts = [path.read_text(errors="replace") for path in sorted(self._scratch.glob(f"{self.output.name}.*"))]
        return "\n".join("\n".join(text.splitlines()[-lines:]) for text in texts)

    def call(self, function: str, *arguments: Any, ranks: int = 2) -> None:
        """Call `module:function` on every rank."""
        self._start({"call": function, "arguments": arguments, "ranks": ranks})
        codes = self._answer()["codes"]
        assert codes == [0] * ranks, f"{function} left with {codes}\n{self.said()}"

    def run(
        self,
        stage: str,
        directory: Path,
        config: dict[str, Any],
        ranks: int = 1,
        *,
        code: int | None = 0,
        signal_when: tuple[signal.Signals, Callable[[], bool]] | None = None,
        to: int | None = None,
        largest_file: int | None = None,
        apart: bool = False,
    ) -> Path:
        """Run a stage on `ranks` ranks; all that come to an end must leave with `code`, or as they like if it is None.

        `signal_when` sends a signal to the rank `to`, or to them all, once its condition is met. Files larger than
        `largest_file` bytes cannot be written, as on a full disk. `apart`: each rank is a job of its own.
        """
        prepare(stage, directory, config)
        request = {"stage": stage, "run_dir": str(directory), "ranks": ranks, "largest_file": largest_file}
        pids = self._start({**request, "apart": apart})
        if signal_when:
            number, condition = signal_when
            end = time.monotonic() + 60
            while not condition() and time.monotonic() < end:
                time.sleep(0.005)
            for pid in pids if to is None else [pids[to]]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.codes = self._answer()["codes"]
        # The server kills the others when one fails: a slower one may not have come to its own end.
        ended = [each for each in self.codes if not (code and code > 0 and each == -signal.SIGKILL)]
        assert code is None or (ended and set(ended) == {code}), f"{stage} left with {self.codes}\n{self.said()}"
        return directory

    def close(self) -> None:
        """End the server; its ranks die with it."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(120)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """One server for the test session."""
    server = Ranks(tmp_path_factory.mktemp("ranks"))
    yield server
    server.close()
