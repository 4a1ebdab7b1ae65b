"""Measure a step of the training engine against DistributedDataParallel: benchmark B8.

    python tools/bench_engine.py [--rounds 7] [--ranks 2] [--preset small] [--size 16] [--batch 2] [--json FILE]

Starts `--ranks` processes with one thread each. docs/benchmarks/training.md says how to read the figures.

Exit code 1 when weights differ, 2 for a mistake in the arguments, 0 otherwise, also when a goal is not reached.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine, table
from bench.compare import OutputsDifferError

from hdtrain.config.presets import DENOISERS
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import write_json
from launchers.processes import environment, start

PACKAGES = ("torch", "deepspeed", "diffusers")
"""Whose versions are printed."""
PARTS = ("stages", "accumulation", "averages", "saving")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--preset", default="small", choices=["ldm4", "histodiff", "small", "tiny"])
    parser.add_argument("--size", type=int, default=16, help="height and width of the latent")
    parser.add_argument("--batch", type=int, default=2, help="images a rank and pass")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=4, help="steps a turn; a quarter of them with 4 passes a step")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := sorted(set(args.only) - set(PARTS)):
        parser.error(f"--only: unknown {', '.join(unknown)}; expected {', '.join(PARTS)}")
    if min(args.rounds, args.ranks, args.batch, args.num) < 1:
        parser.error("--rounds, --ranks, --batch and --num must be at least 1")
    multiple = DENOISERS[args.preset].size_multiple
    if args.size < 1 or args.size % multiple:
        parser.error(f"--size: {args.preset} takes multiples of {multiple}, got {args.size}")
    return args


def start_ranks(count: int) -> int:
    """Run this very command on so many ranks; the exit code of the first that fails, else 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**environment(), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks: list[subprocess.Popen[bytes]] = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        ranks.append(start([sys.executable, *sys.argv], {**common, **place}))
    codes = [process.wait() for process in ranks]
    return next((code for code in codes if code), 0)


def one_rank(args: argparse.Namespace) -> int:
    """Measure together with the other ranks; the main one prints and writes."""
    from bench import engine

    from hdtrain.distributed.collectives import process_group

    is_main = World.from_environment().is_main
    about = machine.describe(PACKAGES) | {"ranks": args.ranks, "rounds": args.rounds, "seed": args.seed}
    about |= {"network": f"{args.preset}, latents {args.size}×{args.size}, {args.batch} images a rank and pass"}
    if is_main:
        print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    figures = []
    with process_group(), tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-engine-") as folder:
        work = engine.Work(args.preset, args.size, args.batch, args.seed)
        try:
            for part in args.only:
                for outcome in engine.run(work, args.num, args.rounds, Path(folder), [part]):
                    if is_main:
                        print("\n" + table.markdown("B8", outcome), flush=True)
                    figures.append(table.as_json(outcome))
        except OutputsDifferError as error:
            if is_main:
                print(f"error: outputs differ: {error}", file=sys.stderr)
            return 1
    if args.json and is_main:
        write_json(args.json, about | {"outcomes": figures})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Start the ranks, or be one of them; return the exit code."""
    args = parse(arguments)
    return one_rank(args) if "RANK" in os.environ else start_ranks(args.ranks)


if __name__ == "__main__":
    sys.exit(main())
