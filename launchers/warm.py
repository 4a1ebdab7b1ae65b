"""The launcher's side of the warm worker (`launchers.worker`)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from launchers.processes import start

_MAX_ANSWER_BYTES = 4096
_PATIENCE_SEC = 5


class WarmWorker:
    """Starts the worker at the first stage, and again if it died."""

    def __init__(self, environment: dict[str, str]):
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, stage: str, run_dir: Path, output: int) -> "WarmStage":
        """Ask for a stage whose stdout and stderr go to the descriptor `output`."""
        if self._process is None or self._process.poll() is not None:
            self._open()
        assert self._process
        request = json.dumps({"stage": stage, "run_dir": str(run_dir)}).encode()
        with contextlib.suppress(OSError):  # a dead worker shows when its answer is awaited
            socket.send_fds(self._channel, [request], [output])
        return WarmStage(self._process, self._channel)

    def _open(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "launchers.worker"]
            self._process = start(command, self._environment, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)

    def close(self) -> None:
        """Let the worker go."""
        if self._process is None:
            return
        self._channel.close()
        try:
            self._process.wait(_PATIENCE_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WarmStage:
    """A stage in a fork of the worker."""

    def __init__(self, worker: "subprocess.Popen[bytes]", channel: socket.socket):
        self._worker, self._channel = worker, channel
        self._pid = worker.pid
        """Until the fork, signals go to the worker, which is still importing."""

    def send_signal(self, number: int, /) -> None:
        """Pass a signal on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def wait(self) -> int:
        """The stage's exit code; a dead worker is a dead stage."""
        while answer := self._receive():
            if "code" in answer:
                return answer["code"]
            self._pid = answer["pid"]
        self._channel.close()
        code = self._worker.wait()
        print(f"error: the warm worker ended with code {code} in the middle of a stage", file=sys.stderr)
        return code or -signal.SIGKILL

    def _receive(self) -> dict[str, int]:
        try:
            answer: dict[str, int] = json.loads(self._channel.recv(_MAX_ANSWER_BYTES) or b"{}")
            return answer
        except OSError:
            return {}
