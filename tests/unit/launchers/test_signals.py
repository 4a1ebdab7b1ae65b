"""A signal that comes while a job's task still begins is heard all the same: nothing is lost, nothing killed."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from submitted_runs import recipe  # noqa: F401
from test_local import wait_for
from test_submit import slurm  # noqa: F401

from hdtrain.formats.submission import read_attempts, submissions

TASK = {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
TASK |= dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
TASK |= {"SLURM_JOB_ID": "101", "SLURM_JOB_NODELIST": "node1", "SUBMITIT_EXECUTOR": "slurm"}


@pytest.fixture
def task(recipe, slurm, hdtrain, tmp_path):  # noqa: F811
    """The submission of a job, and its one task, as its script starts it, from when it holds signals back."""
    (slurm / "scontrol").write_text("#!/bin/sh\necho node1\n")
    hdtrain("launch", recipe, "--cluster", "profile.yaml")
    script = re.sub(r"^srun .*--kill-on-bad-exit=1 ", "exec ", (slurm / "script-101").read_text(), flags=re.MULTILINE)
    environment = {**os.environ, **TASK, "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: blocked(process.pid))
    yield submissions(tmp_path / "runs/demo")[0], process
    process.kill()


def blocked(pid: int) -> bool:
    found = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(found) and bool(int(found[1], 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_told_to_save_before_it_could_hear_it_asks_for_another_attempt(task, number):
    place, process = task
    assert not read_attempts(place, "shards")
    process.send_signal(number)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    begin, end = read_attempts(place, "shards")
    assert (begin["event"], end["code"]) == ("begin", 3)
    assert place.requeue("101").exists()


def test_cancelled_before_it_could_hear_it_does_not_begin(task):
    place, process = task
    place.cancelled("shards").parent.mkdir(parents=True, exist_ok=True)
    place.cancelled("shards").touch()
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode != 0, said
    assert read_attempts(place, "shards")[-1]["message"] == "cancelled before it began"
    assert not place.requeue("101").exists()
    assert not (place.path.parent.parent / "shards").exists()
