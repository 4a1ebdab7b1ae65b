"""Compare the denoiser with plain diffusers, and its size with the published model's: benchmark B7.

    python tools/bench_denoiser.py [--preset small] [--size 16] [--batch 8] [--rounds 7] [--json FILE]
    python tools/bench_denoiser.py --device cuda --preset ldm4 --size 64 --batch 64 --precision bf16 \\
        --variants eager,channels_last,compile

Parameters and FLOPs of `ldm4` are counted in every run, whatever preset is timed. docs/benchmarks/training.md says
how to read the figures.

Exit code 1 when outputs or published numbers differ, 2 for a mistake in the arguments, 0 otherwise, also when a goal
is not reached.
"""

import argparse
import sys
from pathlib import Path

import torch
from bench import denoiser, machine, table
from bench.compare import OutputsDifferError

from hdtrain.config.presets import DENOISERS
from hdtrain.formats.atomic import write_json

PACKAGES = ("torch", "diffusers")
"""Whose versions are printed."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=list(denoiser.PLAIN))
    parser.add_argument("--size", type=int, default=16, help="height and width of the latent")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", type=int, default=3, help="forward and backward passes a turn")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda")
    parser.add_argument("--variants", default="eager,channels_last", help=f"of ours: {', '.join(denoiser.VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batch")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.variants = args.variants.split(",")
    if unknown := sorted(set(args.variants) - set(denoiser.VARIANTS)):
        parser.error(f"--variants: unknown {', '.join(unknown)}; expected {', '.join(denoiser.VARIANTS)}")
    if min(args.rounds, args.batch, args.passes) < 1:
        parser.error("--rounds, --batch and --passes must be at least 1")
    multiple = DENOISERS[args.preset].size_multiple
    if args.size < 1 or args.size % multiple:
        parser.error(f"--size: {args.preset} takes multiples of {multiple}, got {args.size}")
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; return the exit code."""
    args = parse(arguments)
    about = machine.describe(PACKAGES) | {"n": args.batch * args.passes, "rounds": args.rounds, "seed": args.seed}
    if args.device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(args.device)
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    work = denoiser.Work(args.preset, args.size, args.batch, args.precision, args.device, args.passes, args.seed)
    try:
        denoiser.check_published()
        print("\nldm4, counted: {} parameters, {} GF forward, {} GF training; as published".format(*denoiser.PUBLISHED))
        outcome = denoiser.run(work, args.variants, args.rounds)
    except OutputsDifferError as error:
        print(f"error: outputs differ: {error}", file=sys.stderr)
        return 1
    print("\n" + table.markdown("B7", outcome), flush=True)
    if args.json:
        write_json(args.json, about | {"ldm4": denoiser.PUBLISHED, "outcomes": [table.as_json(outcome)]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
