"""Run prepared stages on this machine: one child process, a fork of the warm worker, or several ranks.

What a stage prints goes to the terminal and to `RUN_DIR/logs/NNN.log`. SIGTERM, SIGUSR1 and Ctrl-C (as SIGTERM) go on
to the stage, which saves and leaves with exit code 3; a second Ctrl-C kills it. Children never outlive this process.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hdtrain.config.stages import STAGES
from hdtrain.distributed.world import Machine
from hdtrain.formats.provenance import record_interrupted
from hdtrain.formats.run_dir import RunDir
from hdtrain.stages.__main__ import MISTAKE, OUTCOME_VARIABLE, STOPPED
from launchers.processes import environment, has_gpu, start
from launchers.ranks import start_processes, start_torchrun
from launchers.warm import WarmWorker

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SHOWN_LOG_LINES = 20


class _Stage(Protocol):
    """A running stage."""

    def send_signal(self, number: int, /) -> None:
        """Pass a signal on."""

    def wait(self) -> int:
        """Its exit code; negative when a signal killed it."""


class LocalLauncher:
    """Runs prepared stages one after the other.

    Args:
        warm: keep a worker with torch imported, which pays from the second torch stage on. Not used where there is a
            GPU: a process that touched CUDA cannot be forked.
        machine: which of several machines this is; for stages without torch.
    """

    def __init__(self, *, warm: bool = False, machine: Machine | None = None):
        self._machine = machine or Machine()
        self._worker = WarmWorker(environment()) if warm and not has_gpu() else None

    def __enter__(self) -> "LocalLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._worker.close()

    def run_stage(self, stage: str, run_dir: Path, ranks: int = 1) -> int:
        """Run one prepared stage to its end.

        Returns:
            The stage's exit code: 0 published, 2 a user's mistake, 3 stopped by a signal after saving; negative when a
            signal killed it.

        Raises:
            KeyboardInterrupt: a signal came, and the stage is not one that saves and leaves with 3; holds its number.
        """
        run = RunDir(run_dir)
        log = next_log(run, f"-machine{self._machine.index}" if self._machine.count > 1 else "")
        ranks = 1 if STAGES[stage].one_process else ranks
        with Tee(log) as tee:
            running = self._start(stage, run, ranks, tee)
            with _forwarding(running) as received:
                code = running.wait()
        if ranks * self._machine.count > 1:
            code = _explain_ranks(_outcome(run, self._machine), log, code)
        if received and code not in (MISTAKE, STOPPED):
            tell_interruption(run, stage, log, received[0])
            raise KeyboardInterrupt(received[0])
        return code

    def _start(self, stage: str, run: RunDir, ranks: int, tee: "Tee") -> "_Stage":
        if ranks * self._machine.count > 1:
            outcome = _outcome(run, self._machine)
            outcome.unlink(missing_ok=True)
            variables = {**environment(), OUTCOME_VARIABLE: str(outcome)}
            if STAGES[stage].needs_torch:
                return start_torchrun(stage, run.path, ranks, variables, stdout=tee.input, log=tee.log)
            return start_processes(stage, run.path, ranks, variables, stdout=tee.input, machine=self._machine)
        if self._worker and STAGES[stage].needs_torch:
            return self._worker.start(stage, run.path, tee.input)
        command = [sys.executable, "-m", "hdtrain.stages", stage, str(run.path)]
        return start(command, environment(), stdout=tee.input, stderr=tee.input)


def _outcome(run: RunDir, machine: Machine) -> Path:
    return run.logs / f"outcome-{machine.index}.json"


def _explain_ranks(outcome: Path, log: Path, code: int) -> int:
    """The exit code that the ranks meant, with one message where torchrun has a long one."""
    if outcome.exists():
        text = outcome.read_bytes()
        outcome.unlink()
        if not text:  # it could not be written down, so the rank has printed it
            return MISTAKE
        told: dict[str, Any] = json.loads(text)
        if told["message"]:
            with contextlib.suppress(OSError), log.open("a") as stream:
                print(f"error: {told['message']}", file=stream)
            print(f"error: {told['message']}", file=sys.stderr)
        return int(told["code"])
    if code > 0:
        tail = log.read_text(errors="replace").splitlines()[-_SHOWN_LOG_LINES:]
        print("\n".join([f"the last lines of {log}:", *tail]), file=sys.stderr)
    return code


def tell_interruption(run: RunDir, stage: str, log: Path, number: int) -> None:
    """Write down that a signal ended a stage where it was, as one that looks for signals would have."""
    with contextlib.suppress(OSError):
        if record_interrupted(run):
            with log.open("a") as stream:
                by = f"stopped by {signal.Signals(number).name}"
                print(f"{stage}: {by}; what is finished stays, and the same command continues", file=stream)


@contextlib.contextmanager
def _forwarding(stage: _Stage) -> Iterator[list[int]]:
    """Pass signals on to a stage; gives the list of those that came."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT:
            stage.send_signal(number)
        elif received.count(signal.SIGINT) > 1:
            stage.send_signal(signal.SIGKILL)
        else:
            print("\nstopping: the stage may save first; Ctrl-C again kills it", file=sys.stderr)
            stage.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, handle) for number in _FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def next_log(run: RunDir, suffix: str = "") -> Path:
    """The log of the next attempt: `logs/001.log`, `logs/002.log`, …"""
    run.logs.mkdir(parents=True, exist_ok=True)
    stems = [path.stem.removesuffix(suffix) for path in run.logs.glob(f"*{suffix}.log")]
    number = max((int(stem) for stem in stems if stem.isdecimal()), default=0) + 1
    while True:  # of several jobs that begin in one moment each has its own
        path = run.logs / f"{number:03d}{suffix}.log"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


class Tee:
    """A pipe whose content goes to the terminal and to a log."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "Tee":
        self.log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._output, self.input = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()
        return self

    def _copy(self) -> None:
        while data := os.read(self._output, 65536):
            with contextlib.suppress(OSError):  # the disk may be full; nobody must wait for the log
                os.write(self.log, data)
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone; the log goes on
                sys.stdout.buffer.write(data)
                sys.stdout.flush()

    def __exit__(self, *_: object) -> None:
        os.close(self.input)
        self._thread.join(timeout=5)  # a process that the stage left behind may hold the pipe open
        if not self._thread.is_alive():
            os.close(self._output)
            os.close(self.log)


def run_stage(stage: str, run_dir: Path, ranks: int = 1) -> int:
    """Run one prepared stage; see `LocalLauncher.run_stage`."""
    with LocalLauncher() as launcher:
        return launcher.run_stage(stage, run_dir, ranks)
