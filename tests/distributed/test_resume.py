"""A run that was stopped or killed ends byte for byte as the one that ran through."""

import json
import signal

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hdtrain.formats.manifest import read_manifest

STEPS, BATCH = 20, 4
DURATION = {
    "images": STEPS * BATCH,
    "checkpoint_every_images": 5 * BATCH,
    "visualise_every_images": 7 * BATCH,
    "log_every_steps": 1,
}


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    """`whole("ldm", 2)`: the uninterrupted run on so many ranks, made once."""
    made = {}

    def run(name, size):
        if (name, size) not in made:
            stage, _ = chain.configs[name]
            directory = tmp_path_factory.mktemp("whole") / name
            made[name, size] = ranks.run(stage, directory, chain.config(name, duration=DURATION), size)
        return made[name, size]

    return run


def training_folder(run, name):
    return run / "seed-0" if name in ("phi", "guide") else run


def contents(run, name) -> dict[str, bytes]:
    """What was published, the averages written on the way, and the whole training state at the end."""
    training = training_folder(run, name)
    folders = [run / "model", training / "ema", training / "checkpoints" / f"step-{STEPS:08d}"]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths)}


def rows(folder) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("name", "size", "number"),
    [
        ("ldm", 2, signal.SIGTERM),
        ("vae", 1, signal.SIGTERM),
        pytest.param("vae", 2, signal.SIGKILL, marks=pytest.mark.slow),
        ("phi", 1, signal.SIGTERM),
        ("guide", 1, signal.SIGKILL),
        ("decoder", 1, signal.SIGTERM),
    ],
)
def test_stopped_in_the_middle_it_ends_as_if_nothing_had_happened(chain, ranks, whole, tmp_path, name, size, number):
    code = 3 if number == signal.SIGTERM else -number
    stage, _ = chain.configs[name]
    config, run = chain.config(name, duration=DURATION), tmp_path / name
    training = training_folder(run, name)
    ranks.run(stage, run, config, size, code=code, signal_when=(number, lambda: len(rows(training)) > 9))
    steps = [row["step"] for row in rows(training)]
    assert 9 < steps[-1] < STEPS
    assert not (run / "manifest.json").exists()
    checkpoint = max((training / "checkpoints").glob("step-*")).name
    saved = int(checkpoint.removeprefix("step-"))
    assert saved == steps[-1] if number == signal.SIGTERM else 5 <= saved <= steps[-1]

    ranks.run(stage, run, config, size)
    assert f"going on from {checkpoint}" in ranks.said()
    reference = whole(name, size)
    assert [row["step"] for row in rows(training)] == list(range(1, STEPS + 1))
    board = EventAccumulator(str(training / "tb"))
    board.Reload()
    assert [event.step for event in board.Scalars("lr")] == list(range(1, STEPS + 1))
    assert contents(run, name) == contents(reference, name)
    assert read_manifest(run).identity == read_manifest(reference).identity
    first = next(key for key in rows(training)[0] if key.startswith("loss/"))
    assert [row[first] for row in rows(training)] == [row[first] for row in rows(training_folder(reference, name))]
    record = json.loads((run / "run.json").read_text())["attempts"]
    assert [attempt.get("status") for attempt in record] == ["stopped" if code == 3 else None, "done"]


def test_the_averages_are_written_down_on_the_way(whole):
    """Sixteen times a run or a little less: here at every second of twenty steps."""
    paths = sorted((whole("ldm", 2) / "ema").iterdir())
    assert [path.stem for path in paths] == [f"images-{step * BATCH:012d}" for step in range(2, STEPS + 1, 2)]
    assert {name.partition("/")[0] for name in load_file(paths[0])} == {"ema_std_0.05", "ema_std_0.10"}


@pytest.mark.slow
def test_two_ranks_that_were_stopped_go_on_as_one(chain, ranks, whole, tmp_path):
    config, run = chain.config("ldm", duration=DURATION), tmp_path / "run"
    ranks.run("train-ldm", run, config, 2, code=3, signal_when=(signal.SIGTERM, lambda: len(rows(run)) > 9))
    ranks.run("train-ldm", run, config, 1)
    losses = [[row["loss/diffusion"] for row in rows(table)] for table in (run, whole("ldm", 2))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
