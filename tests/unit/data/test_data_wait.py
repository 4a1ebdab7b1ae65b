"""A slow or failing disk in a real training run: `data_wait` in TensorBoard, and an end with a message."""

import json
import shutil
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_chain import run_here

from hdtrain.formats.read_files import ReadFile


def classifier_config(chain, images, **reader):
    config = chain.config("phi")
    config["model"] = {
        **config["model"],
        "images": [str(images)],
        "reader": {"resolution": 32, "threads": 1, "cache_bytes": 0, **reader},
    }
    return config


def waits(run) -> tuple[list[float], list[float]]:
    """`data_wait` of every step after the first, from both files."""
    lines = (run / "seed-0" / "metrics.jsonl").read_text().splitlines()
    board = EventAccumulator(str(run / "seed-0" / "tb"))
    board.Reload()
    return [json.loads(line)["data_wait"] for line in lines][1:], [e.value for e in board.Scalars("data_wait")][1:]


def test_a_slow_disk_shows_as_data_wait(chain, tmp_path, monkeypatch):
    config = classifier_config(chain, chain["labelled"])
    assert run_here("train-classifier", tmp_path / "fast", config) == 0
    read = ReadFile.read

    def slowly(*arguments):
        time.sleep(0.3)
        return read(*arguments)

    monkeypatch.setattr(ReadFile, "read", slowly)
    assert run_here("train-classifier", tmp_path / "slow", config) == 0
    fast, slow = waits(tmp_path / "fast"), waits(tmp_path / "slow")
    assert slow[0] == pytest.approx(slow[1], rel=1e-5)
    assert len(slow[0]) == 3
    assert all(0 <= wait <= 1 for waits_ in (*fast, *slow) for wait in waits_)
    # The first steps live on what was read ahead while the model was set up; the last cannot.
    assert slow[0][-1] > 0.4, "a batch takes a second to read"
    assert sum(fast[0]) < sum(slow[0])


def test_a_shard_that_vanishes_ends_the_run_with_a_message_and_coming_back_it_goes_on(chain, tmp_path, capsys):
    images = shutil.copytree(chain["labelled"], tmp_path / "labelled")
    away = sorted((images / "shards").glob("*.tar"))[-1]
    config = classifier_config(chain, images, retry_sec=0.2)
    away.rename(tmp_path / "away")
    assert run_here("train-classifier", tmp_path / "run", config) == 2
    said = capsys.readouterr().err
    assert f"error: {away}: sample " in said
    assert "cannot be read: shard is missing; tried for 0.2 s" in said
    (tmp_path / "away").rename(away)
    assert run_here("train-classifier", tmp_path / "run", config) == 0
