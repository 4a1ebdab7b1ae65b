"""The launcher with real processes. The stage `probe` is the tests' own; a sitecustomize makes it known to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROBE = '''
"""Says who it is; then does what its config asks."""
import os, signal, sys, time
from pathlib import Path
from typing import Literal
from hdtrain.config.base import Config
from hdtrain.errors import DataError

IMPORTED_BY = os.getpid()

class ProbeConfig(Config):
    then: Literal["publish", "refuse", "crash", "wait", "sleep", "die", "resume"] = "publish"

def run(config, context):
    rank, stop = context.world.rank, []
    waits = config.then == "wait" or (config.then == "resume" and not (context.run.path / f"saved-{rank}").exists())
    if waits:
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
    print(f"rank {rank} of {context.world.size}, imported by {IMPORTED_BY}, omp {os.environ.get('OMP_NUM_THREADS')}")
    (context.run.path / f"pid-{rank}").write_text(str(os.getpid()))
    if config.then == "refuse":
        raise DataError("the images are blurred")
    if config.then == "crash":
        raise ZeroDivisionError("a bug")
    if config.then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while waits and not stop:
        time.sleep(0.01)
    if config.then == "sleep":
        time.sleep(60)
    if stop:
        time.sleep(0.2 * (1 + rank))
        (context.run.path / f"saved-{rank}").touch()
        sys.exit(3)
    context.publish(info={"ranks": context.world.size})
'''
CUSTOMIZE = """
import sys
sys.path.insert(0, {folder!r})
import hdtrain.stages
from hdtrain.config.stages import STAGES, StageSpec
hdtrain.stages.__path__.append({folder!r})
from hdtrain.stages.probe import ProbeConfig
for name in ("probe", "other-probe"):
    STAGES[name] = StageSpec(name, ProbeConfig, "verification", "of the tests")
"""


@pytest.fixture
def probe(tmp_path):
    """An environment in which `hdtrain probe` exists."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "probe.py").write_text(PROBE)
    (folder / "other_probe.py").write_text("from hdtrain.stages.probe import run\n")
    (folder / "sitecustomize.py").write_text(CUSTOMIZE.format(folder=str(folder)))
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}


@pytest.fixture
def start(probe, tmp_path):
    """Start the command line and give its process; what is left of it is killed at the end."""
    started = []

    def run(*args: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **probe}
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, "-m", "hdtrain", *args]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


def wait_for(condition, timeout_sec: float = 60):
    end = time.monotonic() + timeout_sec
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def alive(pid: int) -> bool:
    stat = read(Path(f"/proc/{pid}/stat"))
    return bool(stat) and stat.rpartition(")")[2].split()[0] != "Z"


def write_recipe(folder: Path, **then: str) -> None:
    stages = {name: {"stage": "probe", "config": {"then": what}} for name, what in then.items()}
    (folder / "recipe.yaml").write_text(json.dumps({"name": "test", "out": "out", "stages": stages}))


def test_a_recipe_imports_once_and_forks_a_process_for_every_stage(cli, probe, tmp_path):
    write_recipe(tmp_path, one="publish", two="publish", three="publish")
    text = cli("run", "recipe.yaml", env=probe).stdout
    importers = {line.split("imported by ")[1] for line in text.splitlines() if "imported by" in line}
    pids = {read(tmp_path / "out" / name / "pid-0") for name in ("one", "two", "three")}
    assert len(importers) == 1
    assert len(pids) == 3
    assert "rank 0 of 1" in read(tmp_path / "out/two/logs/001.log")
    assert "rank 0 of 1" not in read(tmp_path / "out/two/logs/002.log")


@pytest.mark.parametrize(("then", "code", "said"), [("refuse", 2, "failed (2)"), ("die", 137, "was killed by SIGKILL")])
def test_a_stage_that_fails_in_the_warm_worker_stops_the_recipe(cli, probe, tmp_path, then, code, said):
    write_recipe(tmp_path, one="publish", two=then, three="publish")
    done = cli("run", "recipe.yaml", env=probe, code=code)
    assert f"two (probe) {said}; its log: {tmp_path}/out/two/logs/001.log" in done.stderr
    assert "not run: three" in done.stderr
    assert ("error: the images are blurred" in read(tmp_path / "out/two/logs/001.log")) == (then == "refuse")


def test_a_bug_in_a_stage_shows_its_traceback_and_exits_with_1(cli, probe, tmp_path):
    write_recipe(tmp_path, one="crash")
    assert "ZeroDivisionError: a bug" in cli("run", "recipe.yaml", env=probe, code=1).stdout
    record = json.loads(read(tmp_path / "out/one/run.json"))
    assert record["attempts"][0]["status"] == "failed"


def test_a_worker_that_dies_is_a_failed_stage_and_the_stage_dies_with_it(start, tmp_path):
    write_recipe(tmp_path, one="wait")
    process = start("run", "recipe.yaml")
    stage = int(wait_for(lambda: read(tmp_path / "out/one/pid-0")))
    worker = int(Path(f"/proc/{stage}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    assert process.wait(30) == 128 + signal.SIGKILL
    assert "the warm worker ended" in process.stderr.read()
    wait_for(lambda: not alive(stage))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_stage_saves_first(start, tmp_path, number):
    write_recipe(tmp_path, one="wait", two="publish")
    process = start("run", "recipe.yaml")
    wait_for(lambda: read(tmp_path / "out/one/pid-0"))
    process.send_signal(number)
    assert process.wait(30) == 3
    assert (tmp_path / "out/one/saved-0").exists()
    assert "one (probe) was stopped after saving; the same command continues" in process.stderr.read()
    assert json.loads(read(tmp_path / "out/one/run.json"))["attempts"][0]["status"] == "stopped"
    assert not (tmp_path / "out/two").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_looks_for_no_signal_counts_as_stopped_by_it(start, cli, tmp_path, number, code):
    process = start("probe", "then=sleep", "--out", "run")
    wait_for(lambda: read(tmp_path / "run/pid-0"))
    process.send_signal(number)
    assert process.wait(30) == code
    told = cli("status", "run").stdout
    assert "run (probe): stopped; the same command goes on" in told
    assert f"probe: stopped by {number.name}; what is finished stays" in told


def test_the_second_ctrl_c_kills(start, tmp_path):
    process = start("probe", "then=wait", "--out", "run")
    stage = int(wait_for(lambda: read(tmp_path / "run/pid-0")))
    os.kill(stage, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.stderr.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "the same command continues" in process.stderr.read()
    wait_for(lambda: not alive(stage))


def test_ranks_run_under_torchrun_with_the_cores_shared_out(start, tmp_path):
    process = start("probe", "--out", "run", "--ranks", "2")
    text, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert any(
            line.startswith(f"rank {rank} of 2") and line.endswith(f"omp {threads}") for line in text.splitlines()
        )
    assert json.loads(read(tmp_path / "run/manifest.json"))["info"] == {"ranks": 2}


def test_a_mistake_that_ranks_report_is_one_message_without_torchruns_own(cli, probe, tmp_path):
    done = cli("probe", "then=refuse", "--out", "run", "--ranks", "2", env=probe, code=2)
    everything = done.stdout + done.stderr
    assert everything.count("the images are blurred") == 1
    assert "error: the images are blurred\n" in done.stderr
    assert "Traceback" not in everything
    assert "ChildFailedError" not in everything
    assert "error: the images are blurred" in read(tmp_path / "run/logs/001.log")


def test_ranks_save_before_they_stop_and_say_so(start, tmp_path):
    process = start("probe", "then=wait", "--out", "run", "--ranks", "2")
    wait_for(lambda: read(tmp_path / "run/pid-0") and read(tmp_path / "run/pid-1"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3
    assert (tmp_path / "run/saved-0").exists()
    assert (tmp_path / "run/saved-1").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_kill_9_of_the_command_leaves_no_rank_running(start, tmp_path, ranks):
    process = start("probe", "then=wait", "--out", "run", "--ranks", str(ranks))
    pids = [int(wait_for(lambda rank=rank: read(tmp_path / f"run/pid-{rank}"))) for rank in range(ranks)]
    process.kill()
    wait_for(lambda: not any(map(alive, pids)), timeout_sec=10)
