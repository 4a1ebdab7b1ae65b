"""A run that was stopped or killed ends byte for byte as the one that ran through."""

import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hdtrain.formats.manifest import read_manifest

STEPS, BATCH = 12, 4
DURATION = {
    "images": STEPS * BATCH,
    "checkpoint_every_images": 3 * BATCH,
    "visualise_every_images": 4 * BATCH,
    "log_every_steps": 1,
}


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    """`whole("ldm")`: the uninterrupted run, made once."""
    made = {}

    def run(name):
        if name not in made:
            stage, _ = chain.configs[name]
            directory = tmp_path_factory.mktemp("whole") / name
            made[name] = ranks.run(stage, directory, chain.config(name, duration=DURATION))
        return made[name]

    return run


def published(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "model").rglob("*")) if path.is_file()}


def rows(run) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("name", "number"),
    [("ldm", signal.SIGTERM), ("ldm", signal.SIGKILL), ("vae", signal.SIGTERM), ("vae", signal.SIGKILL)],
)
def test_stopped_in_the_middle_it_ends_as_if_nothing_had_happened(chain, ranks, whole, tmp_path, name, number):
    code = 3 if number == signal.SIGTERM else -number
    stage, _ = chain.configs[name]
    config, run = chain.config(name, duration=DURATION), tmp_path / name
    ranks.run(stage, run, config, code=code, signal_when=(number, lambda: len(rows(run)) > 4))
    steps = [row["step"] for row in rows(run)]
    assert 4 < steps[-1] < STEPS
    assert not (run / "manifest.json").exists()
    checkpoint = max((run / "checkpoints").glob("step-*")).name
    saved = int(checkpoint.removeprefix("step-"))
    assert saved == steps[-1] if number == signal.SIGTERM else 3 <= saved <= steps[-1]

    ranks.run(stage, run, config)
    assert f"going on from {checkpoint}" in ranks.said()
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    assert [event.step for event in board.Scalars("lr")] == list(range(1, STEPS + 1))
    assert published(run) == published(whole(name))
    assert read_manifest(run).identity == read_manifest(whole(name)).identity
    first = next(key for key in rows(run)[0] if key.startswith("loss/"))
    assert [row[first] for row in rows(run)] == [row[first] for row in rows(whole(name))]
    record = json.loads((run / "run.json").read_text())["attempts"]
    assert [attempt.get("status") for attempt in record] == ["stopped" if code == 3 else None, "done"]


def test_two_ranks_that_were_stopped_go_on_as_one(chain, ranks, whole, tmp_path):
    config, run = chain.config("ldm", duration=DURATION), tmp_path / "run"
    ranks.run("train-ldm", run, config, 2, code=3, signal_when=(signal.SIGTERM, lambda: len(rows(run)) > 4))
    ranks.run("train-ldm", run, config, 1)
    losses = [[row["loss/diffusion"] for row in rows(table)] for table in (run, whole("ldm"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
