"""Measure what an FID takes beside its network: benchmarks B5 and B6.

    python tools/bench_fid.py [--only B5,B6] [--rounds 5] [--dim 2048] [--num 256] [--threads 1] [--data FOLDER]

B5: from two sets' sums to the distance, against scipy.linalg.sqrtm and torch.linalg.eigvals; a round at 2,048
dimensions takes 10 to 60 seconds, nearly all of it sqrtm's. B6: clean-fid's resize, against Pillow's. `--data` is a
folder of real images; without it crops of the section that scikit-image ships are used. All contestants have one
thread, as the stages have; with more, and other work on the machine, OpenBLAS waits for itself. docs/benchmarks/ says
how to read the figures.

Exit code 1 when two outputs differ, 2 for a mistake in the arguments, 0 otherwise, also when a goal is not reached.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from bench import frechet, machine, resize, samples, table
from bench.compare import Outcome, OutputsDifferError

from hdtrain.distributed.blas import set_blas_threads
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_json

PACKAGES = ("scipy", "numpy", "torch", "pillow")
"""Whose versions are printed."""
NAMES = ("B5", "B6")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NAMES), help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=2048, help="B5: dimensions of the features")
    parser.add_argument("--num", type=int, default=256, help="B6: images a round")
    parser.add_argument("--threads", type=int, default=1, help="B5: of each contestant")
    parser.add_argument("--data", type=Path, help="B6: folder of real images")
    parser.add_argument("--seed", type=int, default=0, help="of features, orders and crops")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := sorted(set(args.only) - set(NAMES)):
        parser.error(f"--only: unknown {', '.join(unknown)}; expected {', '.join(NAMES)}")
    if min(args.rounds, args.num, args.threads) < 1 or args.dim < 2:
        parser.error("--rounds, --num and --threads must be at least 1, --dim at least 2")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; return the exit code."""
    args = parse(arguments)
    sizes = {"dim": args.dim, "n": args.num, "rounds": args.rounds, "seed": args.seed, "threads": args.threads}
    torch.set_num_threads(args.threads)
    set_blas_threads(args.threads)
    about = machine.describe(PACKAGES) | sizes
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    benchmarks: dict[str, Callable[[], Outcome]] = {
        "B5": lambda: frechet.run(args.dim, args.seed, args.rounds),
        "B6": lambda: resize.run(samples.patches(args.data, args.num, args.seed), args.num, args.rounds),
    }
    figures = []
    try:
        for name in args.only:
            outcome = benchmarks[name]()
            print("\n" + table.markdown(name, outcome), flush=True)
            figures.append({"benchmark": name, **table.as_json(outcome)})
    except OutputsDifferError as error:
        print(f"error: outputs differ: {error}", file=sys.stderr)
        return 1
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(args.json, about | {"outcomes": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
