"""`python -m hdtrain.distributed.health BAD_NODES RUN_DIR [--gpu] [--scratch DIR]`: is this rank's node fit for work?

Before a job's first step, on every rank: the device computes, the disk takes a file, and all ranks meet in an
all-reduce. A node whose device or disk fails writes its name into the file BAD_NODES, from which the batch script
excludes it in the next attempt. Exit code 1 where something failed; nobody waits longer than two minutes.
"""

import argparse
import datetime
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from hdtrain.distributed.collectives import device
from hdtrain.distributed.world import World

PATIENCE = datetime.timedelta(minutes=2)
SIZE = 256
PROBE_BYTES = 1 << 20


def find_fault(directory: Path, wants_gpu: bool, scratch: Path | None = None) -> str | None:
    """What is wrong with this node; None: nothing.

    Args:
        directory: of the run, or where it will be; it and TMPDIR must take a file of 1 MiB.
        wants_gpu: the job asked for GPUs.
        scratch: folder for temporary files, which is made; None: the system's.
    """
    if wants_gpu and not torch.cuda.is_available():
        return "torch sees no GPU, and the job asked for one"
    if wants_gpu and torch.cuda.device_count() <= World.from_environment().local_rank:
        return (
            f"torch sees {torch.cuda.device_count()} GPUs, and this is local rank {World.from_environment().local_rank}"
        )
    try:
        ones = torch.ones(SIZE, SIZE, device=device())
        if float((ones @ ones).sum()) != float(SIZE**3):
            return f"{device()} multiplies wrongly"
    except RuntimeError as error:
        return f"{device()} does not compute: {str(error).splitlines()[0]}"
    there = next(path for path in (directory, *directory.parents) if path.exists())
    for folder in (there, scratch or Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".health-") as stream:
                stream.write(b"\0" * PROBE_BYTES)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            return f"{folder} takes no file: {error.strerror}"
    return None


def ranks_meet() -> str | None:
    """What is wrong with the connection between the ranks; None: nothing."""
    world = World.from_environment()
    if world.size == 1:
        return None
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
        total = torch.full((1,), float(world.rank + 1), device=device())
        dist.all_reduce(total)
        dist.destroy_process_group()
    except RuntimeError as error:
        return f"the ranks do not meet over {backend} at {os.environ.get('MASTER_ADDR')}: {str(error).splitlines()[0]}"
    expected = world.size * (world.size + 1) / 2
    return None if float(total) == expected else f"an all-reduce over {backend} gave {float(total)}, not {expected}"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bad_nodes", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--scratch", type=Path)
    args = parser.parse_args()
    fault = find_fault(args.directory, args.gpu, args.scratch)
    if fault:
        with args.bad_nodes.open("a") as stream:
            stream.write(f"{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}\n")
    fault = fault or ranks_meet()
    if fault:
        print(f"error: health check on {socket.gethostname()}: {fault}", file=sys.stderr)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
