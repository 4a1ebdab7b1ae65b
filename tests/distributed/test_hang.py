"""Trainings that hang, and jobs that end: through the users' own command line and on real ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_chain import READER, SIZE_PX, prepare, run_here, train_config

from hdtrain.distributed.stop import END_VARIABLES
from hdtrain.formats.heartbeats import read_heartbeats
from hdtrain.reporting.status import read_status

TIMEOUT_SEC = 8
STEPS = 40


def start(*arguments: object, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hdtrain", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def hdtrain(*arguments: object, code: int, **variables: str) -> str:
    process = start(*arguments, **variables)
    said, _ = process.communicate(timeout=150)
    assert process.returncode == code, said
    return said


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def steps(run: Path) -> int:
    path = run / "seed-0" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def config(make_images, tmp_path) -> Path:
    """A training of many short steps on images of its own, one a shard, in a file."""
    raw = make_images("raw", {"a": 50, "b": 50}, size_px=SIZE_PX)
    assert run_here("shard", tmp_path / "shards", {"sources": [{"path": str(raw)}], "samples_per_shard": 1}) == 0
    model = {"kind": "timm", "name": "test_resnet", "images": [str(tmp_path / "shards")], "reader": READER}
    tree = {"model": model, "engine": {"hang_timeout_sec": TIMEOUT_SEC}, **train_config(4 * STEPS)}
    tree["duration"]["checkpoint_every_images"] = 8
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "arm.yaml"


@pytest.mark.slow
def test_a_training_whose_data_never_come_ends_and_shows_where_it_waits(config, tmp_path):
    tars, run = sorted((tmp_path / "shards/shards").glob("*.tar")), tmp_path / "run"
    process = start("train-classifier", config, "--out", run)
    until(lambda: steps(run) > 2)
    for tar in tars:  # opening one of these waits for a writer that never comes, as a dead file server lets one wait
        os.link(tar, tar.with_suffix(".kept"))
        os.mkfifo(tar.with_suffix(".fifo"))
        tar.with_suffix(".fifo").replace(tar)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "error: train-classifier seed 0: no rank has come on for " in said
    assert re.search(r"rank 0 \(process \d+ on .*\): step \d+, waiting for data, since [\d:]{8}; its threads:", said)
    assert re.search(r"MainThread:\n(.*\n)*.*_accumulate \(.*loop\.py", said)
    assert re.search(r"decode_\d:\n(.*\n)*.*_opened \(.*read_files\.py:\d+\)\n.*__init__ \(.*read_files\.py", said)
    kept = re.search(r"the checkpoint step-(\d+) stays; the same command goes on from step \d+", said)
    assert kept
    assert "its log: " in said
    status = read_status(run)
    assert status.state == "killed"
    assert "no rank has come on" in str(status.message)

    for tar in tars:
        tar.with_suffix(".kept").replace(tar)
    said = hdtrain("train-classifier", config, "--out", run, code=0)
    assert f"going on from step-{kept[1]}" in said
    assert read_status(run).state == "published"


def test_a_rank_that_was_stopped_is_named_and_the_run_goes_on_from_its_checkpoint(config, ranks, tmp_path):
    run, tree = tmp_path / "run", yaml.safe_load(config.read_text())
    prepare("train-classifier", run, tree)
    pids = ranks._start({"stage": "train-classifier", "run_dir": str(run), "ranks": 2})
    # Rank 0 clears the heartbeats when it begins: rank 1 must have written its own since.
    until(lambda: steps(run) > 4 and len(read_heartbeats(run / "seed-0/heartbeats")) == 2)
    os.kill(pids[1], signal.SIGSTOP)
    status = read_status(run)
    assert (status.state, status.ranks) == ("running", 2)
    assert f"process {pids[0]} on " in status.detail
    codes = ranks._answer()["codes"]
    assert codes == [1, -signal.SIGKILL], ranks.said()
    said = ranks.said(200)
    assert re.search(
        r"error: train-classifier seed 0: no rank has come on for .*; rank 1 gives no sign of life\n", said
    )
    assert re.search(rf"rank 1 \(process {pids[1]} on .*\): last heard of at ", said)
    assert re.search(r"rank 0 waits at step \d+, \w+", said)
    step = re.search(r"the checkpoint step-(\d+) stays; the same command goes on from step (\d+)", said)
    assert step
    assert int(step[1]) == int(step[2]) >= 2
    assert [heartbeat.left for heartbeat in read_heartbeats(run / "seed-0/heartbeats")] == [False, False]

    ranks.run("train-classifier", run, tree, 2)
    assert f"going on from step-{step[1]}" in ranks.said()
    assert steps(run) == STEPS


@pytest.mark.slow  # torchrun gives the rank that doesn't answer half a minute
def test_through_torchrun_the_message_comes_once_and_is_in_the_log(config, tmp_path):
    run = tmp_path / "run"
    process = start("train-classifier", config, "--out", run, "--ranks", 2)
    until(lambda: len(read_heartbeats(run / "seed-0/heartbeats")) == 2 and steps(run) > 2)
    os.kill(read_heartbeats(run / "seed-0/heartbeats")[1].pid, signal.SIGSTOP)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.count("error: train-classifier seed 0: no rank has come on for ") == 1
    assert "rank 1 gives no sign of life" in said
    assert "rank 1 gives no sign of life" in (run / "logs/001.log").read_text()
    assert not list((run / "logs").glob("outcome*"))


@pytest.mark.slow
def test_a_run_saves_and_leaves_before_its_job_ends_and_goes_on_in_the_next(config, tmp_path):
    run, (ours, slurm) = tmp_path / "run", END_VARIABLES
    end = int(time.time()) + 110  # too little for a first save of unknown length
    hdtrain("train-classifier", config, "--out", run, code=3, **{slurm: str(end)})
    when = time.strftime("%H:%M", time.localtime(end))
    assert f"stopped because the job ends at {when} after step 1 of {STEPS}" in (run / "logs/001.log").read_text()
    assert json.loads((run / "run.json").read_text())["attempts"][-1]["status"] == "stopped"
    assert read_status(run).state == "stopped"
    assert f"because the job ends at {when}" in str(read_status(run).message)

    hdtrain("train-classifier", config, "--out", run, code=0, **{slurm: str(end), ours: str(end + 3600)})
    assert "going on from step-00000001" in (run / "logs/002.log").read_text()
    assert steps(run) == STEPS


@pytest.mark.slow
def test_a_malformed_end_of_the_job_stops_before_the_first_step(config, tmp_path):
    said = hdtrain("train-classifier", config, "--out", tmp_path / "run", code=2, **{END_VARIABLES[0]: "tomorrow"})
    assert "HDTRAIN_JOB_END_TIME: expected the job's end in unix seconds" in said
    assert "Traceback" not in said
    assert steps(tmp_path / "run") == 0
