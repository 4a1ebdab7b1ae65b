"""Several ranks of one stage on this machine: through torchrun, or plain processes where it needs no torch."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hdtrain.distributed.world import Machine
from launchers.processes import children, start

_POLL_SEC = 0.02


def start_torchrun(
    stage: str, run_dir: Path, ranks: int, variables: Mapping[str, str], *, stdout: int, log: int
) -> "TorchrunRanks":
    """torchrun's own messages go to the log alone; its ranks speak through stdout and HDTRAIN_OUTCOME."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "hdtrain.stages", stage, str(run_dir)]
    return TorchrunRanks(start(command, {**_share_of_cores(ranks), **variables}, stdout=stdout, stderr=log))


def start_processes(
    stage: str, run_dir: Path, ranks: int, variables: Mapping[str, str], *, stdout: int, machine: Machine
) -> "PlainRanks":
    """This machine's ranks; all meet in their run directory (`hdtrain.distributed.shared_work`, `rendezvous`)."""
    command = [sys.executable, "-m", "hdtrain.stages", stage, str(run_dir)]
    size = str(ranks * machine.count)
    places = [
        {"RANK": str(machine.index * ranks + rank), "WORLD_SIZE": size, "LOCAL_RANK": str(rank)}
        for rank in range(ranks)
    ]
    return PlainRanks([start(command, {**variables, **place}, stdout=stdout, stderr=stdout) for place in places])


def _share_of_cores(ranks: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks))}


class TorchrunRanks:
    """torchrun and its ranks. Signals go to the ranks: torchrun would not wait for them to save."""

    def __init__(self, agent: "subprocess.Popen[bytes]"):
        self.agent = agent

    def send_signal(self, number: int, /) -> None:
        """Pass a signal on."""
        for pid in children(self.agent.pid) or [self.agent.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> int:
        """torchrun's exit code."""
        return self.agent.wait()


class PlainRanks:
    """Processes of which none goes on when one has failed."""

    def __init__(self, processes: "list[subprocess.Popen[bytes]]"):
        self.processes = processes

    def send_signal(self, number: int, /) -> None:
        """Pass a signal on."""
        for process in self.processes:
            process.send_signal(number)

    def wait(self) -> int:
        """0 when all ended well, else the code of the first that did not; the others are killed."""
        running = list(self.processes)
        while running:
            for process in running:
                code = process.poll()
                if code:
                    self.send_signal(signal.SIGKILL)
                    for other in self.processes:
                        other.wait()
                    return code
            running = [process for process in running if process.poll() is None]
            time.sleep(_POLL_SEC)
        return 0
