"""One sampling run by several ranks and several jobs, started at different times and killed: always the same shards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.claims import Claims, read_workers
from hdtrain.formats.manifest import read_manifest
from hdtrain.reporting.status import read_status

PER_CLASS, SAMPLES_PER_SHARD = 24, 4


def config(chain) -> dict:
    parents = {"denoiser": "ldm", "decoder": "decoder", "classifier": "guide"}
    sizes: dict[str, object] = {"per_class": PER_CLASS, "samples_per_shard": SAMPLES_PER_SHARD, "batch_size": 4}
    sizes |= {"solver": {"steps": 10, "eta": 1.0}}
    return {name: str(chain[parent]) for name, parent in parents.items()} | sizes


def command(chain, out: Path, ranks: int = 1) -> list[str]:
    words = [f"{key}={json.dumps(value)}" for key, value in config(chain).items()]
    return [sys.executable, "-m", "hdtrain", "sample", *words, "--out", str(out), "--ranks", str(ranks)]


def start(chain, out: Path, ranks: int = 1) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(chain, out, ranks), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def shards(run: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((run / "shards").iterdir())}


def await_shards(run: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(2400):
        if len(list((run / "shards").glob("*.json"))) >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no shards")


@pytest.fixture(scope="module")
def alone(chain, ranks, tmp_path_factory) -> Path:
    return ranks.run("sample", tmp_path_factory.mktemp("alone") / "run", config(chain))


def test_two_jobs_started_at_different_times_and_one_of_them_killed_make_what_one_makes(chain, alone, tmp_path):
    run = tmp_path / "run"
    first = start(chain, run)
    await_shards(run, 2, first)
    (worker,) = read_workers(run / "claims")
    os.kill(worker.pid, signal.SIGSTOP)  # it lives, and holds on to its unit
    second = start(chain, run)
    await_shards(run, 5, second)
    status = read_status(run)
    assert (status.state, status.progress.total_images) == ("running", 2 * PER_CLASS)
    assert "2 workers" in status.detail
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = start(chain, run)  # the lock is free again: it goes on beside the second
    assert "helping it" in ended(second)
    ended(third)
    assert shards(run) == shards(alone)
    assert read_manifest(run).identity == read_manifest(alone).identity
    assert not (run / "claims").exists()
    assert (run / "contact_sheet.jpg").exists()


@pytest.mark.parametrize("ranks", [pytest.param(number, marks=pytest.mark.slow) for number in (2, 3)])
def test_any_number_of_ranks_makes_the_same_shards(chain, alone, tmp_path, ranks):
    ended(start(chain, tmp_path / "run", ranks))
    assert shards(tmp_path / "run") == shards(alone)
    assert read_manifest(tmp_path / "run").identity == read_manifest(alone).identity


@pytest.mark.slow
def test_a_unit_of_a_worker_on_another_host_that_went_silent_is_made_again(chain, alone, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / "manifest.json").unlink()
    for name in ("synthetic-000003.tar", "synthetic-000003.json"):
        (run / "shards" / name).unlink()
    with Claims(run / "claims") as claims:
        assert claims.take("synthetic-000003.tar")
        left = {path.name: path.read_text() for path in (run / "claims").iterdir()}
    for name, text in left.items():  # as a node that lost its power leaves them
        content = text.replace(f'"host":"{os.uname().nodename}"', '"host":"elsewhere"')
        (run / "claims" / name).write_text(content)
    assert json.loads(next(text for text in left.values() if text.startswith("{")))["pid"] == os.getpid()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HDTRAIN_LEASE_SEC": "3"}
    subprocess.run(command(chain, run), env=environment, check=True, capture_output=True, timeout=240)
    assert shards(run) == shards(alone)


@pytest.mark.slow
def test_a_run_of_another_config_does_not_disturb_one_that_is_under_way(chain, tmp_path):
    run = tmp_path / "run"
    first = start(chain, run)
    await_shards(run, 1, first)
    other = subprocess.run([*command(chain, run), "seed=1"], check=False, capture_output=True, text=True, timeout=240)
    assert other.returncode == 2
    assert "makes something else there" in other.stderr
    assert "sampled 48 images" in ended(first)


@pytest.mark.slow
def test_a_signal_ends_a_job_after_its_batch_and_the_same_command_goes_on(chain, alone, tmp_path):
    run = tmp_path / "run"
    job = start(chain, run)
    await_shards(run, 2, job)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 3, said
    assert "the same command continues" in said
    assert not list((run / "claims").glob("*.claim"))
    ended(start(chain, run))
    assert shards(run) == shards(alone)
