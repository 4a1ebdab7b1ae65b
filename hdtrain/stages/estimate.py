"""`python -m hdtrain.stages.estimate STAGE DIR --ranks N [--rate R] < CONFIG`: the figures of `--dry-run`.

The resolved config comes as YAML on stdin; nothing is written. Exit codes as of `hdtrain.stages.__main__`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hdtrain.config.batch import BatchPlan
from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.distributed.collectives import device
from hdtrain.errors import HdtrainError
from hdtrain.formats.fingerprint import fingerprint, read_parents
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.provenance import read_run_json
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.run_progress import Progress, read_progress
from hdtrain.training.checks import check
from hdtrain.training.estimate import Estimate, count
from hdtrain.training.rate import NotTried, Rate, try_steps
from hdtrain.training.workload import costs_of

MISTAKE = 2


def estimate(stage: str, tree: dict[str, Any], directory: Path, ranks: int, rate: float | None) -> Estimate:
    """Everything that is known before a training runs.

    Args:
        stage: a training stage.
        tree: its resolved config.
        directory: its run directory, which need not be there.
        ranks: processes.
        rate: images a second of one rank, measured elsewhere; None: what a run of the same config in `directory` has
            logged, else a few steps are tried here.

    Raises:
        HdtrainError: what the stage itself would refuse before training.
    """
    config: Any = validate(STAGES[stage].config, tree, stage)
    parents = read_parents(config, stage)
    manifest_of: Callable[[Path], Manifest] = dict(parents.values()).__getitem__
    check(config, manifest_of)
    plan = BatchPlan.from_config(config.batch, ranks)
    costs = costs_of(config, manifest_of)
    earlier, earlier_ranks = _earlier(RunDir(directory), config, fingerprint(stage, config, parents))
    found: Rate | NotTried
    if rate is not None:
        found = Rate(rate * ranks, f"{rate:g} images/s a rank, as given by --rate")
    elif earlier.images_per_sec:
        scaled = earlier.images_per_sec * ranks / earlier_ranks
        found = Rate(scaled, f"as logged in {directory.name} on {count(earlier_ranks, 'rank')}")
    else:
        found = try_steps(costs, config.engine, plan, device())
    return Estimate(config, plan, costs, directory, device(), found, earlier.images)


def _earlier(run: RunDir, config: Any, wanted: str) -> tuple[Progress, int]:
    """How far a run of the same config got, and on how many ranks; nothing where another run lies there."""
    record = read_run_json(run)
    if record.get("fingerprint") != wanted or not record.get("attempts"):
        return Progress(), 1
    runs = run.seeds or [run]
    progress = [read_progress(one, config.model_dump(mode="json"), time.time()) for one in runs]
    rates = [one.images_per_sec for one in progress if one.images_per_sec]
    seen = sum(one.images for one in progress)
    return Progress(images=seen, images_per_sec=rates[-1] if rates else None), int(record["attempts"][-1]["ranks"])


def main(arguments: list[str] | None = None) -> int:
    """Print the estimate, or a mistake; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[spec.name for spec in STAGES.values() if spec.trains])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rate", type=float)
    args = parser.parse_args(arguments)
    try:
        print(estimate(args.stage, yaml.safe_load(sys.stdin), args.directory, args.ranks, args.rate))
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
