"""Read whole epochs of published image shards as training does, on several ranks, and check what came.

    python tools/read_epochs.py runs/corpus/unlabelled --ranks 2 --epochs 2 [--resume-at N --resume-ranks R]

Every key must come exactly once an epoch, whatever the ranks; with `--resume-at` the run is cut after N images and goes
on with another number of ranks. Prints images a second and each process's peak memory; exits with 1 when a key is
missing or comes twice.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import BatchConfig
from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.prefetch import Prefetcher
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.shards import Sidecar, sidecar_path
from sharding.inputs import key_hash


def read(rank: int, args: argparse.Namespace, ranks: int, first: int, stop: int, out: Path) -> None:
    """One rank: read its part of steps `first` to `stop`, leave the hashes of its keys by epoch."""
    manifest = read_manifest(args.images, ("images",))
    config = ReaderConfig(resolution=args.resolution, threads=args.threads, cache_bytes=0)
    source = TrainingImages([(args.images, manifest)], config, args.seed)
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=args.batch), ranks)
    epoch_size, total = manifest.num_samples, manifest.num_samples * args.epochs
    hashes: list[list[int]] = [[] for _ in range(args.epochs)]
    steps = [(step, 0, rank) for step in range(first, stop)]
    started, count = time.monotonic(), 0
    batches = Prefetcher(lambda item: source.batch(plan.positions(*item)), steps)
    for (step, _, _), batch in zip(steps, batches, strict=True):
        for position, key in zip(plan.positions(step, 0, rank), batch.keys, strict=True):
            if position < total:
                hashes[position // epoch_size].append(key_hash(key))
                count += 1
        if rank == 0 and step % 200 == 0:
            print(f"rank 0: step {step:,} of {stop:,}, {count / (time.monotonic() - started):,.0f} img/s", flush=True)
    seconds = time.monotonic() - started
    np.savez(out / f"{first}-{rank}.npz", *[np.array(found, np.uint64) for found in hashes])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"ranks": ranks, "rank": rank, "images": count, "seconds": seconds, "peak_rss_mib": peak}
    (out / f"{first}-{rank}.json").write_text(json.dumps(figures))


def run_ranks(args: argparse.Namespace, ranks: int, first: int, stop: int, out: Path) -> list[dict[str, Any]]:
    """All ranks as processes of their own."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=read, args=(rank, args, ranks, first, stop, out)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a rank failed")
    return [json.loads((out / f"{first}-{rank}.json").read_bytes()) for rank in range(ranks)]


def main() -> None:
    """Parse the command line, read, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/epochs"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=768, help="images a step over all ranks")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="decoding threads a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume-at", type=int, help="stop after about this many images and go on …")
    parser.add_argument("--resume-ranks", type=int, default=3, help="… with this many ranks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("*-*.np*"):
        old.unlink()
    manifest = read_manifest(args.images, ("images",))
    steps = -(-manifest.num_samples * args.epochs // args.batch)
    cut = min(args.resume_at // args.batch, steps) if args.resume_at else steps
    started = time.monotonic()
    figures = run_ranks(args, args.ranks, 0, cut, args.out)
    if cut < steps:
        figures += run_ranks(args, args.resume_ranks, cut, steps, args.out)
    seconds = time.monotonic() - started
    listed = np.sort(np.array([key_hash(key) for key in all_keys(args.images, manifest)], np.uint64))
    good = True
    for epoch in range(args.epochs):
        parts = [np.load(path)[f"arr_{epoch}"] for path in sorted(args.out.glob("*-*.npz"))]
        seen = np.sort(np.concatenate(parts))
        exact = np.array_equal(seen, listed)
        good &= exact
        print(f"epoch {epoch}: {len(seen):,} keys, " + ("every key exactly once" if exact else "NOT every key once"))
    for one in figures:
        print(
            f"rank {one['rank']} of {one['ranks']}: {one['images']:,} images, "
            f"{one['images'] / one['seconds']:,.0f} img/s, peak memory {one['peak_rss_mib']:,.0f} MiB"
        )
    print(f"{manifest.num_samples * args.epochs:,} images in {seconds:,.1f} s, all ranks together, start-up included")
    sys.exit(0 if good else 1)


def all_keys(directory: Path, manifest: Manifest) -> list[str]:
    """Every key that the sidecars list."""
    return [key for entry in manifest.shards for key in Sidecar.read(sidecar_path(directory / entry.name)).keys]


if __name__ == "__main__":
    main()
