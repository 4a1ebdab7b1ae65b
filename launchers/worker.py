"""`python -m launchers.worker`: imports what a stage needs once, then forks a child for every stage.

Importing torch, deepspeed and diffusers costs seconds of CPU a process, more than many stages of a small recipe. The
worker imports a stage's module, runs none of it, and forks. Its stdin is a packet socket: a request is
`{"stage": …, "run_dir": …}` with the write end of the output pipe; the answers are `{"pid": …}` and `{"code": …}`.
"""

import contextlib
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hdtrain.config.stages import STAGES
from hdtrain.distributed.processes import die_with_parent
from hdtrain.stages.__main__ import run_stage

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_MAX_REQUEST_BYTES = 65536


def serve(channel: socket.socket) -> int:
    """Answer requests until the launcher goes away; a child ends with its stage's exit code."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    own_stderr = os.dup(_STDERR)
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, 1)
        if not data:
            return 0
        request = json.loads(data)
        _send_output_to(descriptors[0], descriptors[0])
        with contextlib.suppress(Exception):  # the child imports again, and reports the error as its own
            importlib.import_module(STAGES[request["stage"]].module)
        worker = os.getpid()
        child = os.fork()
        if child == 0:
            die_with_parent(worker)
            channel.close()
            os.dup2(nowhere, _STDIN)
            _exit_with(run_stage, request["stage"], Path(request["run_dir"]))
        _send_output_to(nowhere, own_stderr)
        os.close(descriptors[0])
        channel.send(json.dumps({"pid": child}).encode())
        _, status = os.waitpid(child, 0)
        channel.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _exit_with(run: Callable[..., int], *arguments: object) -> NoReturn:
    """End this process with what `run` returns, without the interpreter's farewell.

    That would copy every page of the worker that the fork shares: seconds of CPU a stage.
    """
    try:
        code = run(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _send_output_to(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, _STDOUT)
    os.dup2(stderr, _STDERR)


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=os.dup(_STDIN))))
