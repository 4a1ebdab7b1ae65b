"""Several real processes pack one data set: the same bytes, whatever their number and however they died."""

import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from sharding_helpers import Run, noise

from hdtrain.formats.claims import read_workers
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.status import read_status

MakeImages = Callable[..., Path]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layouts: a zip of PNGs, an HDF5 file that must be encoded, a folder with copies and a wreck."""
    raw = tmp_path_factory.mktemp("raw")
    with zipfile.ZipFile(raw / "zipped.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(400):
            archive.writestr(f"top/{number // 100}/{number:03d}.png", png(noise(24, seed=number)))
    with h5py.File(raw / "array.h5", "w") as file:
        file["train_img"] = np.stack([noise(24, seed=1000 + number) for number in range(700)])
    (raw / "loose").mkdir()
    for number in range(300):
        (raw / "loose" / f"{number:03d}.png").write_bytes(png(noise(24, seed=2000 + number % 290)))
    (raw / "loose" / "wreck.png").write_bytes(b"no image")
    sources = [{"path": str(raw / name), "layout": layout} for name, layout in SOURCES]
    config = {"sources": sources, "samples_per_shard": 60, "near_duplicates": {"max_distance": 0}, "seed": 3}
    path = raw / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


SOURCES = (("zipped.zip", "flat"), ("array.h5", "hdf5"), ("loose", "flat"))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def start(config: Path, out: Path, ranks: int, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hdtrain", "shard", str(config), "--out", str(out), "--ranks", str(ranks), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(config: Path, out: Path, ranks: int) -> str:
    process = start(config, out, ranks)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said


def kill(process: "subprocess.Popen[str]") -> None:
    """The launcher dies by SIGKILL, and its stages with it."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def alone(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("alone") / "run"
    said = finish(mixed, out, 1)
    assert "1,390 ok, 11 rejected (10 duplicate, 1 not an image)" in said
    return Run(out)


def test_three_processes_make_the_same_bytes(mixed: Path, alone: Run, tmp_path: Path) -> None:
    said = finish(mixed, tmp_path / "run", 3)
    assert said.count("1,390 ok") == 1
    run = Run(tmp_path / "run")
    assert run.files == alone.files
    assert run.manifest.identity == alone.manifest.identity
    assert not RunDir(run.path).work.exists()


def test_three_machines_share_the_work_whichever_begins_first(mixed: Path, alone: Run, tmp_path: Path) -> None:
    run, said = RunDir(tmp_path / "run"), []
    late = [start(mixed, run.path, 1, "--machine", f"{number}/3") for number in (2, 1)]
    time.sleep(1.5)
    assert not run.path.exists()
    machines = [start(mixed, run.path, 1, "--machine", "0/3"), *late]
    for process in machines:
        said.append(process.communicate(timeout=120)[0])
        assert process.returncode == 0, said[-1]
    assert Run(run.path).files == alone.files
    assert "1,390 ok" in said[0]
    assert "helping" in said[1]
    assert sorted(path.name for path in run.logs.glob("*.log")) == [f"001-machine{number}.log" for number in range(3)]
    again = start(mixed, run.path, 1, "--machine", "1/3").communicate(timeout=60)[0]
    assert "skip, done" in again


def test_machines_verify_again_together(alone: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hdtrain", "verify", f"images={alone.path}", "--out", tmp_path / "v", "--machine"]
    for _ in range(2):  # the second time something is published there already
        late = subprocess.Popen([*command, "1/2"], stdout=subprocess.PIPE, text=True)
        time.sleep(0.7)
        first = subprocess.run([*command, "0/2"], capture_output=True, text=True, check=True, timeout=60)
        assert "verify: 1,390 samples in 24 shards are whole" in first.stdout
        assert "helping" in late.communicate(timeout=60)[0]


def test_a_machine_that_fails_ends_the_others(make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", 5)
    (raw / "bad.png").write_bytes(b"")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"sources": [{"path": str(raw)}], "max_failed_share": 0}))
    machines = [start(config, tmp_path / "run", 1, "--machine", f"{number}/2") for number in range(2)]
    for process in machines:
        assert "1 of 6 images cannot be used" in process.communicate(timeout=60)[0]
        assert process.returncode == 2


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_again_and_again_at_any_moment_with_other_numbers_of_processes(
    mixed: Path, alone: Run, tmp_path: Path, seed: int
) -> None:
    draw, out, kills = random.Random(seed), tmp_path / "run", 0
    while kills < 4:
        process = start(mixed, out, draw.choice([1, 2, 3]))
        until = time.monotonic() + draw.uniform(0.8, 2.5)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        if RunDir(out).manifest.exists():  # it was just about to end
            break
    if process.stdout and not process.stdout.closed:
        process.communicate()
    assert kills
    finish(mixed, out, 2)
    assert Run(out).files == alone.files


@pytest.mark.parametrize("moment", [pytest.param("survey", marks=pytest.mark.slow), "pack"])
def test_killed_in_the_survey_or_while_packing(mixed: Path, alone: Run, tmp_path: Path, moment: str) -> None:
    run = RunDir(tmp_path / "run")
    process = start(mixed, run.path, 2)
    pattern = {"survey": "work/survey-*.arrow", "pack": "shards/shard-000002.tar"}[moment]
    while not list(run.path.glob(pattern)) and process.poll() is None:
        time.sleep(0.002)
    kill(process)
    (run.shards / ".shard-000003.tar.tmp").parent.mkdir(exist_ok=True)
    (run.shards / ".shard-000003.tar.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_ino for path in run.path.glob("shards/*.tar") if path.with_suffix(".json").exists()}
    finish(mixed, run.path, 3)
    assert Run(run.path).files == alone.files
    assert {path: path.stat().st_ino for path in kept} == kept


def test_one_process_that_fails_ends_all_with_one_message(make_images: MakeImages, tmp_path: Path) -> None:
    raw = make_images("raw", 20)
    (raw / "bad.png").write_bytes(b"")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"sources": [{"path": str(raw)}], "max_failed_share": 0}))
    process = start(config, tmp_path / "run", 3)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert said.count("error: 1 of 21 images cannot be used") == 1
    assert "Traceback" not in said
    (raw / "bad.png").unlink()
    assert "20 ok, 0 rejected" in finish(config, tmp_path / "run", 3)


def test_more_processes_than_work_are_no_trouble(make_images: MakeImages, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"sources": [{"path": str(make_images("raw", 3))}]}))
    assert "3 ok" in finish(config, tmp_path / "run", 4)
    verified = [sys.executable, "-m", "hdtrain", "verify", f"images={tmp_path / 'run'}", "--out", tmp_path / "v"]
    done = subprocess.run([*verified, "--ranks", "4"], capture_output=True, text=True, check=True)
    assert "verify: 3 samples in 1 shard are whole" in done.stdout


def await_files(run: Path, pattern: str, count: int, process: "subprocess.Popen[str]") -> None:
    while len(list(run.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def test_three_jobs_that_begin_together_make_what_one_makes(mixed: Path, alone: Run, tmp_path: Path) -> None:
    """As the elements of an array do: nobody knows how many there are."""
    jobs, said = [start(mixed, tmp_path / "run", 1) for _ in range(3)], []
    for job in jobs:
        said.append(job.communicate(timeout=120)[0])
        assert job.returncode == 0, said[-1]
    run = Run(tmp_path / "run")
    assert run.files == alone.files
    assert run.manifest.identity == alone.manifest.identity
    assert sum("1,390 ok" in text for text in said) == 1
    assert not RunDir(run.path).work.exists()
    assert not RunDir(run.path).claims.exists()
    late = start(mixed, run.path, 1)
    assert "skip, done" in late.communicate(timeout=60)[0]
    assert late.returncode == 0


@pytest.mark.parametrize(
    "moment",
    [
        "work/survey-*.arrow",
        *(pytest.param(pattern, marks=pytest.mark.slow) for pattern in ("work/planned.json", "shards/shard-*.json")),
    ],
)
def test_a_job_that_is_killed_beside_another_costs_nothing(
    mixed: Path, alone: Run, tmp_path: Path, moment: str
) -> None:
    run = tmp_path / "run"
    first = start(mixed, run, 1)
    await_files(run, "claims/worker-*.json", 1, first)
    second = start(mixed, run, 1)
    await_files(run, moment, 1, first)
    kill(first)
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 0, said
    assert "1,390 ok" in said
    assert Run(run).files == alone.files
    assert not list(run.glob("**/.*.tmp"))


def test_status_tells_what_the_workers_are_at_and_how_far(mixed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(mixed, run, 1)
    await_files(run, "shards/shard-*.json", 3, job)
    (worker,) = read_workers(run / "claims")
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        status = read_status(run)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert (status.state, status.detail) == ("running", f"1 worker: 1 on {os.uname().nodename}; pack")
    assert status.progress.total_images == 1390
    assert 3 * 60 <= status.progress.images < 1390
    job.communicate(timeout=60)


def test_a_signal_ends_a_job_at_once_and_the_same_command_goes_on(mixed: Path, alone: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(mixed, run, 1)
    await_files(run, "shards/shard-*.json", 1, job)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=30)[0]
    assert job.returncode == 3, said
    assert "the same command continues" in said
    assert not list(run.glob("claims/*"))
    assert not list(run.glob("**/.*.tmp"))
    finish(mixed, run, 1)
    assert Run(run).files == alone.files
