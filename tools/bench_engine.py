"""Compare a step of the training engine with DDP and fused AdamW on several CPU ranks: benchmark B8.

    python tools/bench_engine.py [--ranks 2] [--preset small] [--size 8] [--micro-batch 4] [--rounds 5] [--json FILE]

Starts its ranks itself, one thread each. docs/benchmarks/training.md says how to read the figures.

Exit code 1 when losses differ, 2 for a mistake in the arguments, 0 otherwise, also when a goal is not reached.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "diffusers")
"""Whose versions are printed."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--preset", default="small", choices=["tiny", "small", "ldm4"])
    parser.add_argument("--size", type=int, default=8, help="height and width of the latent")
    parser.add_argument("--micro-batch", type=int, default=4, help="images a rank and pass")
    parser.add_argument("--accumulation", default="1,4", help="passes a step, each a table of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="a turn")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    if min(args.ranks, args.size, args.micro_batch, args.rounds, args.steps) < 1:
        parser.error("--ranks, --size, --micro-batch, --rounds and --steps must be at least 1")
    if not all(part.isdecimal() and int(part) for part in args.accumulation.split(",")):
        parser.error(f"--accumulation: expected whole numbers such as 1,4, got {args.accumulation}")
    return args


def on_a_rank(args: argparse.Namespace) -> int:
    """One rank's part; rank 0 prints."""
    from bench import engine, machine, table
    from bench.compare import OutputsDifferError

    from hdtrain.distributed.collectives import process_group
    from hdtrain.distributed.world import World
    from hdtrain.formats.atomic import write_json

    is_main, outcomes = World.from_environment().is_main, []
    about = machine.describe(PACKAGES) | {"ranks": args.ranks, "threads a rank": 1, "seed": args.seed}
    if is_main:
        print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    try:
        with process_group(), tempfile.TemporaryDirectory() as folder:
            for passes in map(int, args.accumulation.split(",")):
                work = engine.Work(args.preset, args.size, args.micro_batch, passes, args.steps, args.seed)
                outcomes.append(engine.run(work, args.rounds, Path(folder) / str(passes)))
                if is_main:
                    print("\n" + table.markdown("B8", outcomes[-1]), flush=True)
    except OutputsDifferError as error:
        print(f"error: outputs differ: {error}", file=sys.stderr)
        return 1
    if is_main and args.json:
        write_json(args.json, about | {"outcomes": [table.as_json(outcome) for outcome in outcomes]})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Start the ranks, or be one of them; return the exit code."""
    args = parse(arguments)
    if "RANK" in os.environ:
        return on_a_rank(args)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *(arguments or sys.argv)], env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
