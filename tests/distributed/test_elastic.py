"""A run goes on at another number of ranks and another ZeRO stage, and comes to the same weights."""

import shutil

import pytest
from safetensors.torch import load_file
from states import relative_difference

BATCH, BEFORE, AFTER = 12, 5, 20
FIRST, LAST = f"step-{BEFORE:08d}", f"step-{BEFORE + AFTER:08d}"
EVERYWHERE = [(size, zero_stage) for size in (1, 2, 3, 4) for zero_stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    """`whole("ldm", ranks=1, zero_stage=1, micro_batch_size=1)`: the run that was never interrupted, made once."""
    made = {}

    def run(name, size, zero_stage, micro_batch_size):
        key = name, size, zero_stage, micro_batch_size
        if key not in made:
            directory = tmp_path_factory.mktemp("whole") / name
            stage, _ = chain.configs[name]
            made[key] = ranks.run(stage, directory, config_of(chain, name, zero_stage, micro_batch_size), size)
        return made[key]

    return run


def config_of(chain, name, zero_stage, micro_batch_size):
    return chain.config(
        name,
        batch={"global_batch_size": BATCH, "micro_batch_size": micro_batch_size},
        optim={"lr": 1e-4},
        engine={"zero_stage": zero_stage},
        duration={
            "images": (BEFORE + AFTER) * BATCH,
            "checkpoint_every_images": BEFORE * BATCH,
            "keep_checkpoints": 100,
            "visualise_every_images": 100 * BATCH,
        },
    )


def go_on(ranks, chain, name, whole, directory, size, zero_stage, micro_batch_size):
    """From the whole run's checkpoint after `BEFORE` steps, elsewhere."""
    shutil.copytree(whole / "checkpoints" / FIRST, directory / "checkpoints" / FIRST)
    stage, _ = chain.configs[name]
    ranks.run(stage, directory, config_of(chain, name, zero_stage, micro_batch_size), size)
    assert f"going on from {FIRST}" in ranks.said()
    return directory


def differences(run, whole) -> dict[str, float]:
    """Of weights, moments and averages in the last checkpoint."""
    files = sorted(path.name for path in (whole / "checkpoints" / LAST).glob("*.safetensors"))
    assert len(files) >= 3
    return {
        name.removesuffix(".safetensors"): relative_difference(
            *(load_file(directory / "checkpoints" / LAST / name) for directory in (run, whole))
        )
        for name in files
    }


@pytest.mark.parametrize(
    ("begun", "size", "zero_stage"),
    [
        ((1, 1), 2, 3),
        ((1, 1), 3, 2),
        *(pytest.param((1, 1), *place, marks=pytest.mark.slow) for place in EVERYWHERE),
        *(pytest.param((2, 3), *place, marks=pytest.mark.slow) for place in ((1, 0), (3, 1), (4, 2))),
        *(pytest.param((4, 2), *place, marks=pytest.mark.slow) for place in ((1, 3), (2, 0), (3, 1))),
    ],
    ids=str,
)
def test_a_denoiser_trains_on_elsewhere_to_the_same_state(chain, ranks, whole, tmp_path, begun, size, zero_stage):
    """Image by image, so that only the order of sums differs: 1e-6 after 20 further steps."""
    reference = whole("ldm", *begun, micro_batch_size=1)
    run = go_on(ranks, chain, "ldm", reference, tmp_path / "run", size, zero_stage, micro_batch_size=1)
    found = differences(run, reference)
    print(found)
    assert {name.partition(".")[2] for name in found} >= {"weights", "exp_avg", "exp_avg_sq", "ema", "ema_std_0.05"}
    assert max(found.values()) < 1e-6, found


