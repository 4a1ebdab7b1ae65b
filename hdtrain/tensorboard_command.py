"""`hdtrain tensorboard`: TensorBoard over all runs of a recipe, from a login node.

    hdtrain tensorboard FOLDER [--port N] [--host H] [--dry-run]

TensorBoard names runs by their folders, and searches a whole tree for them. So it gets a folder of links, one a run,
which is kept up to date while it runs.
"""

import argparse
import contextlib
import getpass
import hashlib
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from hdtrain.errors import HdtrainError

FIRST_PORT, PORTS = 6006, 100
REFRESH_SEC = 10.0
_PATTERNS = ("tb", "seed-*/tb", "*/tb", "*/seed-*/tb")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain tensorboard`."""
    command.add_argument("folder", type=Path, metavar="FOLDER", help="a recipe's folder, a sweep's, or a run directory")
    command.add_argument("--port", type=_port, metavar="N", help=f"default: the first free one from {FIRST_PORT}")
    command.add_argument("--host", default="localhost", metavar="H", help="0.0.0.0: open to others; default: localhost")
    command.add_argument("--dry-run", action="store_true", help="show the runs and the command, start nothing")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got '{text}'")
    return int(text)


def tensorboard(args: argparse.Namespace) -> int:
    """Start it, say where it is, and stay until it ends."""
    folder: Path = args.folder.absolute()
    if not folder.is_dir():
        raise HdtrainError(f"{args.folder}: no such folder; expected a recipe's folder, a sweep's, or a run directory")
    runs = event_folders(folder)
    if not runs:
        raise HdtrainError(f"{args.folder}: no run in it has written TensorBoard events yet (RUN/tb)")
    if importlib.util.find_spec("tensorboard") is None:
        raise HdtrainError("tensorboard is not installed here: pip install tensorboard")
    port = args.port or _free_port(args.host)
    links = _place(folder)
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={links}", f"--host={args.host}", f"--port={port}"]
    if args.dry_run:
        print("\n".join(f"{name}  {path}" for name, path in runs.items()))
        print(f"\nwith links to these in {links}:\n{shlex.join(command)}")
        return 0
    update_links(links, runs)
    names = ", ".join(list(runs)[:8])
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {names}{', …' if len(runs) > 8 else ''}")
    print("\n".join(how_to_reach(args.host, port)), flush=True)
    return _serve(command, folder, links)


def event_folders(folder: Path) -> dict[str, Path]:
    """Name, such as `ldm` or `arm/seed-0`, to the folder of its events; of a run directory its own name."""
    found = {}
    for pattern in _PATTERNS:
        for path in sorted(folder.glob(pattern)):
            parts = path.parent.relative_to(folder).parts
            if any(part.startswith(".") or ".previous-" in part for part in parts) or not path.is_dir():
                continue
            alone = not parts or parts[0].startswith("seed-")
            found["/".join([folder.name, *parts] if alone else parts)] = path
    return found


def how_to_reach(host: str, port: int) -> list[str]:
    """The address here, and the tunnel to it from one's own machine."""
    here = socket.getfqdn()
    if host in ("localhost", "127.0.0.1", "::1"):
        return [
            f"here:                  http://localhost:{port}/",
            f"from your own machine: ssh -N -L {port}:localhost:{port} {getpass.getuser()}@{here}   "
            f"and open http://localhost:{port}/",
            "Ctrl-C ends it",
        ]
    return [f"http://{here if host in ('0.0.0.0', '::') else host}:{port}/   open to everybody who reaches this host"]


def _place(folder: Path) -> Path:
    """One's own, the same for the same folder; made only by `update_links`."""
    name = f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / f"hdtrain-tensorboard-{os.getuid()}" / name


def update_links(links: Path, runs: dict[str, Path]) -> None:
    """A link a run; those of runs that are gone are removed.

    Raises:
        HdtrainError: the folder of links is somebody else's.
    """
    links.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if links.parent.is_symlink() or links.parent.stat().st_uid != os.getuid():
        raise HdtrainError(f"{links.parent} is not yours; set TMPDIR to a folder of your own")
    links.mkdir(exist_ok=True)
    for link in links.rglob("*"):
        if link.is_symlink() and runs.get(str(link.relative_to(links))) != link.readlink():
            link.unlink()
    for name, path in runs.items():
        link = links / name
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(path)


def _free_port(host: str) -> int:
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    raise HdtrainError(f"no free port on {host} from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}; give --port")


def _serve(command: list[str], folder: Path, links: Path) -> int:
    """TensorBoard's exit code; 0 after Ctrl-C. It never outlives this process's way out."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return max(0, process.wait(timeout=REFRESH_SEC))
            except subprocess.TimeoutExpired:
                update_links(links, event_folders(folder))
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            process.wait()
