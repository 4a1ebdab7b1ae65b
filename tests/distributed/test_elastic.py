"""A run goes on at another number of ranks and another ZeRO stage, and comes to the same weights."""

import shutil
import signal

import pytest
import yaml
from safetensors.torch import load_file
from states import relative_difference

from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.formats.checkpoint import complete
from hdtrain.run_state import inspect

BATCH, BEFORE, AFTER = 12, 5, 20
FIRST = f"step-{BEFORE:08d}"
EVERYWHERE = [(size, zero_stage) for size in (1, 2, 3, 4) for zero_stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    """`whole("ldm", ranks=1, zero_stage=1, micro_batch_size=1, after=20)`: the run that was never interrupted, made
    once.
    """
    made = {}

    def run(name, size, zero_stage, micro_batch_size, after=AFTER):
        key = name, size, zero_stage, micro_batch_size, after
        if key not in made:
            directory = tmp_path_factory.mktemp("whole") / name
            stage, _ = chain.configs[name]
            made[key] = ranks.run(stage, directory, config_of(chain, name, zero_stage, micro_batch_size, after), size)
        return made[key]

    return run


def config_of(chain, name, zero_stage, micro_batch_size, after=AFTER):
    return chain.config(
        name,
        batch={"global_batch_size": BATCH, "micro_batch_size": micro_batch_size},
        optim={"lr": 1e-4},
        engine={"zero_stage": zero_stage},
        duration={
            "images": (BEFORE + after) * BATCH,
            "checkpoint_every_images": (1 if name == "vae" else BEFORE) * BATCH,
            "keep_checkpoints": 100,
            "visualise_every_images": 100 * BATCH,
        },
    )


def go_on(ranks, chain, name, whole, directory, size, zero_stage, micro_batch_size, after=AFTER):
    """From the whole run's checkpoint after `BEFORE` steps, elsewhere."""
    shutil.copytree(whole / "checkpoints" / FIRST, directory / "checkpoints" / FIRST)
    stage, _ = chain.configs[name]
    ranks.run(stage, directory, config_of(chain, name, zero_stage, micro_batch_size, after), size)
    assert f"going on from {FIRST}" in ranks.said()
    return directory


def differences(run, whole, after: int = AFTER) -> dict[str, float]:
    """Of weights, moments and averages, so many steps after the change."""
    ours, theirs = (directory / "checkpoints" / f"step-{BEFORE + after:08d}" for directory in (run, whole))
    files = sorted(path.name for path in theirs.glob("*.safetensors"))
    found = {
        name.removesuffix(".safetensors"): relative_difference(load_file(ours / name), load_file(theirs / name))
        for name in files
    }
    print(f"after {after} steps:", {name: f"{value:.1e}" for name, value in found.items()})
    assert {name.partition(".")[2] for name in found} >= {"weights", "exp_avg", "exp_avg_sq"}
    return found


@pytest.mark.parametrize(
    ("begun", "size", "zero_stage", "after"),
    [
        ((1, 1), 3, 2, 5),
        *(pytest.param((1, 1), *place, AFTER, marks=pytest.mark.slow) for place in EVERYWHERE),
        *(pytest.param((2, 3), *place, AFTER, marks=pytest.mark.slow) for place in ((1, 0), (3, 1), (4, 2))),
        *(pytest.param((4, 2), *place, AFTER, marks=pytest.mark.slow) for place in ((1, 3), (2, 0), (3, 1))),
    ],
    ids=str,
)
def test_a_denoiser_trains_on_elsewhere_to_the_same_state(
    chain, ranks, whole, tmp_path, begun, size, zero_stage, after
):
    """Image by image, so that only the order of sums differs: 1e-6 after 20 further steps."""
    reference = whole("ldm", *begun, micro_batch_size=1, after=after)
    run = go_on(ranks, chain, "ldm", reference, tmp_path / "run", size, zero_stage, micro_batch_size=1, after=after)
    found = differences(run, reference, after)
    assert {"denoiser.ema", "denoiser.ema_std_0.05", "denoiser.ema_std_0.10"} <= found.keys()
    assert max(found.values()) < 1e-6, found


@pytest.mark.slow
@pytest.mark.parametrize(("size", "zero_stage"), [(2, 1), (3, 2), (4, 3)])
def test_so_it_does_when_the_batch_is_split_evenly(chain, ranks, whole, tmp_path, size, zero_stage):
    """12, 6, 4 or 3 images a pass, for which kernels round differently."""
    reference = whole("ldm", 1, 1, micro_batch_size=None)
    run = go_on(ranks, chain, "ldm", reference, tmp_path / "run", size, zero_stage, micro_batch_size=None)
    assert max(differences(run, reference).values()) < 1e-6


@pytest.mark.parametrize(
    ("size", "zero_stage"),
    [pytest.param(*place, marks=pytest.mark.slow) for place in ((2, 3), (3, 0), (4, 2), (1, 3))],
)
def test_an_autoencoder_and_its_discriminator_train_on_elsewhere(chain, ranks, whole, tmp_path, size, zero_stage):
    """1e-6 after a step. Absolute values, hinges and leaky ReLUs have kinks: when a rounding error crosses one, a
    gradient changes by 1e-4 at once. So does it in a run on the same ranks whose weights were changed by 6e-8."""
    reference = whole("vae", 1, 1, micro_batch_size=None)
    run = go_on(ranks, chain, "vae", reference, tmp_path / "run", size, zero_stage, micro_batch_size=None)
    assert max(differences(run, reference, after=1).values()) < 1.5e-6
    after = differences(run, reference)
    assert max(value for name, value in after.items() if name.endswith("weights")) < 1e-3


@pytest.mark.slow
def test_a_run_directory_goes_on_with_another_way_of_computing_the_same(chain, ranks, tmp_path):
    config, run = config_of(chain, "ldm", 1, None), tmp_path / "run"
    stop = (signal.SIGTERM, lambda: complete(run / "checkpoints"))
    ranks.run("train-ldm", run, config, 2, code=3, signal_when=stop)

    def status(**changes) -> str:
        tree = yaml.safe_load((run / "config.yaml").read_text())
        for dotted, value in changes.items():
            part, key = dotted.split("__")
            tree[part][key] = value
        return inspect("train-ldm", validate(STAGES["train-ldm"].config, tree, "test"), run, "test").status

    incidental = {
        "engine": {"zero_stage": 3, "compile": True, "activation_checkpointing": True, "channels_last": True},
        "batch": {"micro_batch_size": 3},
        "duration": {"checkpoint_every_images": 7, "visualise_every_images": 9, "keep_checkpoints": 1, "keep_best": 0},
        "guard": {"skip_batches": 5, "loss_factor": None},
    }
    for part, keys in incidental.items():
        for key, value in keys.items():
            assert status(**{f"{part}__{key}": value}) == "half done", f"{part}.{key}"
    for key, value in {"optim__lr": 1e-3, "batch__global_batch_size": 6, "engine__precision": "bf16"}.items():
        assert status(**{key: value}) == "changed", key
