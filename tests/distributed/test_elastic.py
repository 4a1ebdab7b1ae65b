"""A run goes on at another number of ranks and another ZeRO stage, and comes to the same weights."""

import shutil
import time

from safetensors.torch import load_file
from states import relative_difference

BATCH, BEFORE, AFTER = 12, 5, 20
LAST = f"step-{BEFORE + AFTER:08d}"


def config_of(chain, name, zero_stage, **changes):
    duration = {"images": (BEFORE + AFTER) * BATCH, "checkpoint_every_images": BEFORE * BATCH, "keep_checkpoints": 10}
    batch = {"global_batch_size": BATCH, "micro_batch_size": 1}
    changes = {
        "batch": batch,
        "engine": {"zero_stage": zero_stage},
        "duration": duration,
        "optim": {"lr": 1e-4},
    } | changes
    return chain.config(name, **changes)


def differences(run, whole) -> dict[str, float]:
    """Of everything in the last checkpoint."""
    files = sorted(path.name for path in (whole / "checkpoints" / LAST).glob("*.safetensors"))
    assert len(files) >= 3
    return {
        name: relative_difference(*(load_file(directory / "checkpoints" / LAST / name) for directory in (run, whole)))
        for name in files
    }


def go_on(ranks, chain, name, whole, directory, size, zero_stage, **changes):
    """From the whole run's checkpoint after `BEFORE` steps, elsewhere."""
    first = f"step-{BEFORE:08d}"
    shutil.copytree(whole / "checkpoints" / first, directory / "checkpoints" / first)
    stage, _ = chain.configs[name]
    ranks.run(stage, directory, config_of(chain, name, zero_stage, **changes), size)
    assert f"going on from {first}" in ranks.said()
    return directory


def test_try(chain, ranks, tmp_path):
    for lr in (1e-4,):
        changes = {"optim": {"lr": lr}}
        s = time.time()
        whole = ranks.run("train-ldm", tmp_path / f"whole{lr}", config_of(chain, "ldm", 1, **changes), 1)
        print(time.time() - s)
        for size, stage in [(2, 3), (3, 2), (4, 0)]:
            s = time.time()
            run = go_on(ranks, chain, "ldm", whole, tmp_path / f"run-{lr}-{size}-{stage}", size, stage, **changes)
            print(lr, size, stage, differences(run, whole), time.time() - s)
    assert 0
