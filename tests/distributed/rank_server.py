"""Forks ranks of stages from a process that has imported everything, since importing costs more than these stages.

Reads one JSON request a line from stdin: `{"stage": …, "run_dir": …, "ranks": n, "largest_file": bytes or null}`, or
`{"call": "module:function", "arguments": […], "ranks": n}`. With `"apart": true` each is alone in a job of its own, as
the elements of an array are. Answers `{"pids": […]}` and, when all have ended,
`{"codes": […]}`. The ranks form a real gloo group, with the environment that torchrun would give them. When one rank
fails the others are killed.
"""

import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from tiny_chain import fewer_grid_steps

from hdtrain.distributed.processes import die_with_parent
from hdtrain.stages.__main__ import run_stage

MODULES = (
    "train_vae",
    "encode",
    "evaluate",
    "evaluate_images",
    "train_ldm",
    "train_classifier",
    "adapt_decoder",
    "sample",
    "paint",
    "select",
    "sweep_guidance",
    "sweep_solvers",
)


def main() -> int:
    for name in MODULES:
        importlib.import_module(f"hdtrain.stages.{name}")
    fewer_grid_steps()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        port = _free_port()
        for rank in range(request["ranks"]):
            pid = os.fork()
            if pid == 0:
                _become(rank, 1 if request.get("apart") else request["ranks"], port, request["output"])
                os._exit(_run(request))
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        print(json.dumps({"codes": _wait(pids, together=not request.get("apart"))}), flush=True)
    return 0


def _become(rank: int, ranks: int, port: int, output: str) -> None:
    die_with_parent()
    log = os.open(f"{output}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _run(request: dict[str, Any]) -> int:
    try:
        if "stage" in request:
            if request.get("largest_file"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
            code = run_stage(request["stage"], Path(request["run_dir"]))
        else:
            module, _, function = request["call"].partition(":")
            getattr(importlib.import_module(module), function)(*request["arguments"])
            code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _wait(pids: list[int], together: bool) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if together and codes[pid] not in (0, 3):
            for other in set(pids) - set(codes):  # as torchrun does
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
