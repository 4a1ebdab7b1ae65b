"""`hdtrain status` on run directories that real stages made, whole and damaged."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_chain import READER, run_here, train_config

from hdtrain.distributed.stop import END_VARIABLES
from hdtrain.errors import HdtrainError
from hdtrain.formats.heartbeats import process_state
from hdtrain.reporting.status import find_runs, read_status
from hdtrain.reporting.status_text import status_notes, status_page, status_rows
from hdtrain.reporting.tail import TAIL_BYTES

ON_THE_WAY = """
import sys, time
from pathlib import Path
from hdtrain.distributed.watchdog import Watchdog
from hdtrain.distributed.world import World
from hdtrain.formats.provenance import record_start
from hdtrain.formats.run_dir import RunDir
run = RunDir(Path(sys.argv[1]))
record_start(run, "train-ldm", "f", 2)
with Watchdog(run.heartbeats, World(0, 2), timeout_sec=8, title="train"):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def published(chain) -> Path:
    return chain["ldm"]


@pytest.fixture(scope="module")
def stopped(chain, tmp_path_factory) -> Path:
    """A run that left after its first step, since its job would end soon."""
    directory = tmp_path_factory.mktemp("status") / "ldm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(END_VARIABLES[0], str(int(time.time()) + 60))
        assert run_here("train-ldm", directory, chain.config("ldm")) == 3
    return directory


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda run: Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def process() -> Iterator[Callable[[Path], "subprocess.Popen[str]"]]:
    """A process that begins an attempt in a run directory, and stands in its loop."""
    started = []

    def start(run: Path) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen([sys.executable, "-c", ON_THE_WAY, str(run)], stdout=subprocess.PIPE, text=True)
        )
        assert started[-1].stdout
        assert started[-1].stdout.readline() == "begun\n"
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def unpublished(run: Path) -> Path:
    (run / "manifest.json").unlink()
    return run


def test_a_published_run_shows_all_its_figures(published):
    status = read_status(published)
    done = status.progress
    last = json.loads((published / "metrics.jsonl").read_text().splitlines()[-1])
    assert (status.state, status.stage, status.ranks, status.message) == ("published", "train-ldm", 1, None)
    assert done
    assert (done.step, done.steps, done.images, done.total_images) == (4, 4, 16, 16)
    assert done.figures["loss/diffusion"] == last["loss/diffusion"]
    assert done.figures["lr"] == last["lr"]
    assert done.checkpoint
    assert done.checkpoint.name == "step-00000004"
    page = status_page(status)
    assert page.startswith(f"{published} (train-ldm): published\n")
    for pattern in (
        r"step +4 of 4 \(100\.0 %\)",
        r"images +16 of 16 \(100\.0 %\)",
        r"speed +[\d.,]+ images/s, .* of the time waiting for data",
        r"loss +diffusion \d\.\d{3}",
        r"grad norm +denoiser \d",
        r"lr +\d",
        r"checkpoint +step-00000004, .* old",
    ):
        assert re.search(pattern, page), pattern


def test_a_stopped_run_says_where_it_goes_on(stopped):
    status = read_status(stopped)
    assert (status.state, status.detail) == ("stopped", "")
    assert status.progress
    assert (status.progress.step, status.progress.steps) == (1, 4)
    assert status.seconds_left is None
    page = status_page(status)
    assert "(train-ldm): stopped; the same command goes on" in page
    assert re.search(r"checkpoint +step-00000001", page)


def test_a_running_process_is_told_from_a_stopped_and_a_killed_one(published, copy, process):
    run = unpublished(copy(published))
    child = process(run)
    status = read_status(run)
    assert (status.state, status.ranks) == ("running", 2)
    assert f"process {child.pid} on " in status.detail
    assert status.running_sec is not None
    assert 0 <= status.running_sec < 60
    assert status.seconds_left == 0
    assert re.search(r"running, process \d+ on .*, 2 ranks, for .* s\n", status_page(status))

    child.send_signal(signal.SIGSTOP)
    while "stopped" not in process_state(child.pid):  # Linux stops it when it gets round to it
        time.sleep(0.01)
    status = read_status(run, now=time.time() + 30)
    assert status.state == "hung"
    assert re.search(
        rf"rank 0: no sign of life for \d+ s, at step 0, beginning \(process {child.pid} on .*, stopped by a signal",
        status.detail,
    )
    assert "hung: rank 0" in status_page(status)

    child.kill()
    child.wait()
    status = read_status(run)
    assert (status.state, status.detail.endswith("is gone")) == ("killed", True)
    assert "killed without a word" in status_page(status)
    assert status_notes([status]) == [f"run: process {child.pid} on {socket.gethostname()} is gone"]


def test_a_standstill_is_remarked_before_the_watchdog_ends_it(published, copy, process):
    run = unpublished(copy(published))
    process(run)
    status = read_status(run, now=time.time() + 5)
    assert status.state == "running"
    assert re.search(r", where no rank has come on for \d s: rank 0 is at step 0, beginning", status.detail)


def test_a_pid_that_is_another_process_now_is_not_taken_for_the_run(published, copy):
    run = unpublished(copy(published))
    record = json.loads((run / "run.json").read_text())
    record["attempts"] = [{"started": time.time() - 1e7, "ranks": 1, "pid": os.getpid()}]
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "heartbeats")
    assert read_status(run).state == "killed"


def test_a_run_on_another_host_runs_while_its_heartbeats_or_its_log_are_fresh(published, copy, process):
    run = unpublished(copy(published))
    process(run).kill()
    record = json.loads((run / "run.json").read_text()) | {"host": "node7"}
    (run / "run.json").write_text(json.dumps(record))
    beat = next((run / "heartbeats").glob("*.json"))
    beat.write_text(beat.read_text().replace(json.loads(beat.read_text())["host"], "node7"))
    assert read_status(run).state == "running"
    later = read_status(run, now=time.time() + 100)
    assert later.state == "hung"
    assert later.detail.endswith(" on node7)")
    beat.unlink()
    assert read_status(run).state == "unknown"
    (run / "logs").mkdir()
    (run / "logs/001.log").touch()
    assert read_status(run).state == "running"


def test_a_failed_stage_shows_its_error_and_its_log(hdtrain, make_images, tmp_path):
    for image in make_images("raw", 3).rglob("*.png"):
        image.write_bytes(b"")
    hdtrain("shard", "sources=[{path: raw}]", "--out", "shards", code=2)
    said = hdtrain("status", "shards").out
    assert said.startswith("shards (shard): failed\n")
    log = tmp_path / "shards/logs/001.log"
    error = next(line for line in log.read_text().splitlines() if line.startswith("error: "))
    assert re.search(f"log says +{re.escape(error[:100])}", said)
    assert re.search(r"log +shards/logs/001\.log", said)


def test_a_folder_of_runs_is_a_table_in_the_order_of_their_beginning(chain, published, hdtrain):
    (chain.root / "ldm.previous-12345678").mkdir(exist_ok=True)
    (chain.root / "ldm.previous-12345678/run.json").write_text("{}")
    lines = hdtrain("status", chain.root).out.splitlines()
    assert lines[0].split() == ["run", "stage", "state", "done", "images/s", "left", "loss", "last", "row"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["ldm"][:4] == ["train-ldm", "published", "100.0", "%"]
    assert rows["unlabelled"][:4] == ["shard", "published", "4", "shards"]
    names = list(rows)
    assert names.index("unlabelled") < names.index("vae") < names.index("latents") < names.index("ldm")
    assert "ldm.previous-12345678" not in rows
    shutil.rmtree(chain.root / "ldm.previous-12345678")


def test_json_says_the_same_for_machines(hdtrain, published, stopped):
    first, second = json.loads(hdtrain("status", "--json", published, stopped).out)
    assert (first["state"], second["state"]) == ("published", "stopped")
    assert first["progress"]["figures"]["loss/diffusion"] > 0
    assert second["progress"]["checkpoint"]["name"] == "step-00000001"


def test_a_classifier_shows_its_seeds_and_their_sum(chain, tmp_path):
    chain["labelled"]
    run = tmp_path / "arm"
    model = {"kind": "timm", "name": "test_resnet", "reader": READER, "images": [str(chain.root / "labelled")]}
    assert run_here("train-classifier", run, {"model": model, "seeds": [3, 5], **train_config(8)}) == 0
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "seed-5")
    status = read_status(run)
    assert status.progress
    assert (status.progress.step, status.progress.steps) == (2, 4)
    assert (status.progress.images, status.progress.total_images) == (8, 16)
    assert list(status.seeds) == ["3"]
    assert status.seeds["3"].step == 2
    assert re.search(r"seed 3 +step 2 of 2 \(100\.0 %\); ", status_page(status))
    assert "50.0 %" in status_rows([status])[1]


DAMAGED = [b"", b"{", b"[1", b"null", b"3", b"[]", b'"x"', b"\x00\xff\n\xfe", b"{}\n[]\nnull\n"]


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "heartbeats/rank-00000.json"])
def test_damaged_files_harm_nothing(published, copy, name):
    run = unpublished(copy(published))
    for content in DAMAGED:
        (run / name).write_bytes(content)
        status = read_status(run)
        assert status.path == str(run)
        assert status_page(status)
        assert len(status_rows([status])) == 2
        assert len(status_notes([status])) <= 1
        json.dumps(status.tree())


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "heartbeats/rank-00000.json"])
def test_files_cut_anywhere_harm_nothing(published, copy, name):
    run = unpublished(copy(published))
    whole = (run / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        (run / name).write_bytes(whole[:length])
        assert status_page(read_status(run))


@pytest.mark.parametrize(
    "attempts",
    ["x", [None], [{}], [{"started": "x"}], [{"started": 1e308, "pid": -1, "ranks": "y"}], [{"pid": 10**400}]],
)
def test_senseless_records_harm_nothing(published, copy, attempts):
    run = unpublished(copy(published))
    (run / "run.json").write_text(json.dumps({"attempts": attempts, "stage": 3, "host": None}))
    assert status_page(read_status(run))


def test_of_a_metrics_file_of_gigabytes_only_the_end_is_read(published, copy):
    run = copy(published)
    rows = (run / "metrics.jsonl").read_bytes()
    with (run / "metrics.jsonl").open("wb") as stream:
        stream.truncate(8 << 30)  # a hole: no room is taken
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + rows + b'{"step": 5, "ima')
    before = time.thread_time()
    status = read_status(run)
    assert time.thread_time() - before < 0.5
    assert TAIL_BYTES < 1 << 20
    assert status.progress
    assert status.progress.step == 4


def test_a_folder_without_runs_and_a_folder_that_is_not_there_are_said(hdtrain, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty is no run directory and holds none" in hdtrain("status", "empty", code=2).err
    assert "nowhere: no such folder" in hdtrain("status", "nowhere", code=2).err
    with pytest.raises(HdtrainError):
        find_runs([tmp_path / "nowhere"])


def test_a_prepared_run_has_not_begun(published, copy):
    run = unpublished(copy(published))
    (run / "run.json").write_text('{"stage": "train-ldm"}')
    assert "(train-ldm): not begun" in status_page(read_status(run))


def test_it_imports_as_little_as_help(published):
    code = """
import sys
from hdtrain.cli import main
assert main(sys.argv[1:]) == 0
heavy = {"torch", "numpy", "tqdm", "PIL", "webdataset", "pyarrow"} & set(sys.modules)
sys.exit(f"imported: {heavy} among {len(sys.modules)}" if heavy or len(sys.modules) > 450 else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "status", published], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
