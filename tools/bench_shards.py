"""Measure packing and reading of shards against other tools: benchmarks B1 to B4.

    python tools/bench_shards.py [--only B1,B2] [--rounds 7] [--num 2000] [--data FOLDER] [--json FILE]

B1 pack, B2 encode and pack, B3 read and decode, B4 latents. `--data` is a folder of real images (any size, cut or
enlarged to 256×256); without it crops of the section that scikit-image ships are used. `--folder` is where shards are
written and read; it should be on the disk that matters. docs/benchmarks/ says how to read the figures.

Exit code 1 when two tools' outputs differ, 2 for a mistake in the arguments, 0 otherwise, also when a goal is not
reached.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import encode, latents, machine, pack, read, samples, table
from bench.compare import Outcome, OutputsDifferError

from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import write_json

PACKAGES = ("webdataset", "simplejpeg", "imagecodecs", "pillow", "numpy", "torch")
"""Whose versions are printed."""


def benchmarks(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Iterable[Outcome]]]:
    """Name to what runs it."""
    images = samples.patches(args.data, args.num, args.seed)
    made = samples.make_samples(images, args.num)
    return {
        "B1": lambda: pack.run(made, folder, args.rounds),
        "B2": lambda: [encode.run(made, images, folder, args.rounds)],
        "B3": lambda: [read.run(made, folder, args.seed, args.rounds)],
        "B4": lambda: latents.run(args.num, folder, args.seed, args.rounds),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="B1,B2,B3,B4", help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=2000, help="samples a round")
    parser.add_argument("--data", type=Path, help="folder of real images")
    parser.add_argument("--seed", type=int, default=0, help="of crops, order and latents")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := sorted(set(args.only) - {"B1", "B2", "B3", "B4"}):
        parser.error(f"--only: unknown {', '.join(unknown)}; expected B1, B2, B3, B4")
    if min(args.rounds, args.num) < 1:
        parser.error("--rounds and --num must be at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; return the exit code."""
    args = parse(arguments)
    about = machine.describe(PACKAGES) | {"n": args.num, "rounds": args.rounds, "seed": args.seed}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    figures = []
    try:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-shards-") as folder:
            for name, run in benchmarks(args, Path(folder)).items():
                if name in args.only:
                    for outcome in run():
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
