"""Send a large synthetic set through `select` and `evaluate`, and watch memory and time.

    python tools/bench_select_evaluate.py [--num 200000] [--real 5000] [--ranks 2] [--folder DIR] [--json FILE]

Draws a synthetic set of `--num` images and real ones (32 px, four classes), trains a tiny classifier for the arms, and
runs `hdtrain select`, `hdtrain evaluate` of two arms with all candidates, and `hdtrain evaluate real=… fake=…`, each as
a user would. `--encoder` is a timm model with random weights: what its features say is of no interest here, their
number and dimensions are. With `--folder` everything is kept there, and what is done is not done again.

Exit code 0 when all stages ended well, else 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bench import machine
from bench.drawn_sets import PER_SHARD, SIZE_PX, publish_drawn
from bench.peak import Ran, run_watched

from hdtrain.formats.atomic import write_bytes, write_json

PACKAGES = ("torch", "timm", "numpy", "pillow")
TEST_IMAGES = 1000
STAGES = ("select", "evaluate", "evaluate-images")


def configs(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Stage to config; all three share one folder of features."""
    shared = {
        "encoder": {"kind": "timm", "name": args.encoder},
        "features": str(folder / "features"),
        "resolution": SIZE_PX,
        "batch_size": args.batch_size,
    }
    real, synthetic, phi = (str(folder / name) for name in ("real", "synthetic", "phi"))
    arms = {
        "real": {"classifier": phi},
        "selected": {"classifier": phi, "synthetic": str(folder / "select" / "selective-1")},
    }
    return {
        "select": {"real": [real], "candidates": [synthetic], "ratios": [0.5, 1.0], **shared},
        "evaluate": {
            "train": real,
            "test": str(folder / "test"),
            "arms": arms,
            "baseline": "real",
            "candidates": synthetic,
            "judge": phi,
            "memorisation_px": args.memorisation_px,
            **shared,
        },
        "evaluate-images": {"real": real, "fake": synthetic, **shared},
    }


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Draw the sets and train the arms' classifier, as far as they are not there."""
    for seed, (name, count, split) in enumerate(
        (("synthetic", args.num, "synthetic"), ("real", args.real, "train"), ("test", TEST_IMAGES, "test"))
    ):
        publish_drawn(folder / name, count, split, seed)
    config = {
        "model": {
            "kind": "image",
            "images": [str(folder / "real")],
            "preset": "lae-tiny",
            "reader": {"resolution": SIZE_PX, "threads": 1},
        },
        "batch": {"global_batch_size": 32},
        "optim": {"lr": 1e-3},
        "duration": {"images": 640},
    }
    hdtrain("train-classifier", folder / "phi", config, 1)


def hdtrain(stage: str, run: Path, config: dict[str, Any], ranks: int) -> Ran:
    """Run a stage through the command line."""
    path = run.with_suffix(".yaml")
    write_bytes(path, yaml.safe_dump(config, sort_keys=False).encode())
    command = [sys.executable, "-m", "hdtrain", stage, str(path), "--out", str(run), "--ranks", str(ranks)]
    return run_watched(command, {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})


def measure(folder: Path, args: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every stage once, with a line of a Markdown table each."""
    say("| stage | images | time | images/s | largest process | all processes |\n|---|---|---|---|---|---|")
    rows = []
    for stage, config in configs(folder, args).items():
        if stage in args.only:
            ran = hdtrain(stage, folder / stage, config, args.ranks)
            row = {"stage": stage, "images": args.num, "images_per_sec": args.num / ran.seconds, **ran.__dict__}
            rows.append(row)
            sizes = " | ".join(f"{size / 2**20:,.0f} MiB" for size in (ran.peak_process_bytes, ran.peak_tree_bytes))
            say(f"| {stage} | {args.num:,} | {ran.seconds:,.0f} s | {row['images_per_sec']:,.0f} | {sizes} |")
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200_000, help="synthetic images")
    parser.add_argument("--real", type=int, default=5000, help="real images")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--encoder", default="test_mambaout", help="a timm model: 256 dimensions at 160 px")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--memorisation-px", type=int, default=8, help="32, as by default, takes 16 times as long")
    parser.add_argument("--only", default=",".join(STAGES), help="which, separated by commas")
    parser.add_argument("--folder", type=Path, help="keep everything here; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    if unknown := sorted(set(args.only) - set(STAGES)):
        parser.error(f"--only: unknown {', '.join(unknown)}; expected {', '.join(STAGES)}")
    if min(args.num, args.real) < PER_SHARD:
        parser.error(f"--num and --real must be at least {PER_SHARD}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Draw, run, print, write; return the exit code."""
    args = parse(arguments)
    about = machine.describe(PACKAGES) | {name: getattr(args, name) for name in ("num", "real", "ranks", "encoder")}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    lines: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-select-evaluate-") as scratch:
            folder = args.folder or Path(scratch)
            prepare(folder, args)
            rows = measure(folder, args, lines.append)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd)} left with {error.returncode}", file=sys.stderr)
        return 1
    print("\n" + "\n".join(lines))
    if args.json:
        write_json(args.json, about | {"stages": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
