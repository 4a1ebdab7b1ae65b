"""`hdtrain status` of a painting that is on its way, was stopped, or is done."""

import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from threading import Thread

import pytest
from tiny_chain import run_here
from tiny_painting import publish_autoencoder, publish_denoiser, saved_grid

from hdtrain.distributed.stop import STOP
from hdtrain.reporting.status import read_status
from hdtrain.reporting.status_text import status_page, status_rows

STEPS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("painting")
    vae = publish_autoencoder(folder / "vae")
    models = {"decoder": str(vae), "denoiser": str(publish_denoiser(folder / "denoiser", vae))}
    source = str(saved_grid(folder / "grid.npz", 6, 3))
    return {**models, "grid": {"source": source}, "steps": STEPS, "stride": 4, "save_every": 1, "preview_every": 1}


def stopped_at(run: Path, config: dict, name: str) -> Path:
    """A run that was told to stop once it had written a file."""

    def told() -> None:
        while not (run / name).exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    teller = Thread(target=told)
    teller.start()
    assert run_here("paint", run, config) == 3
    teller.join()
    STOP.number = 0
    return run


def at_work(run: Path) -> Path:
    """As if this process had taken up the run a moment ago."""
    record = json.loads((run / "run.json").read_text()) | {"host": socket.gethostname()}
    record["attempts"] = [{"started": time.time(), "ranks": 1, "pid": os.getpid()}]
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def solving(config, tmp_path_factory) -> Path:
    return stopped_at(tmp_path_factory.mktemp("solving") / "run", config, "work/canvas.npz")


def test_a_stopped_painting_says_how_far_it_came_and_what_is_saved(solving):
    status = read_status(solving)
    assert status.state == "stopped"
    assert status.painting
    assert 1 <= status.painting.saved_steps <= status.painting.step < STEPS
    assert status.seconds_left is None
    page = status_page(status)
    assert re.search(r"step +\d+ of 20 \(\d+\.0 %\), 55 windows each", page)
    assert re.search(rf"saved +the canvas after step {status.painting.saved_steps}\n", page)
    assert re.search(rf"preview +{re.escape(str(solving))}/preview\.png, .+ old", page)
    assert "time left" not in page


def test_a_painting_at_work_shows_speed_time_left_and_where_its_preview_lies(solving):
    record = (solving / "run.json").read_bytes()
    status = read_status(at_work(solving))
    assert (status.state, status.painting is None) == ("running", False)
    told = json.loads((solving / "work" / "progress.json").read_text())
    left = (STEPS * 55 - told["done"]) / told["windows_per_sec"]
    assert status.seconds_left == pytest.approx(left)
    page = status_page(status)
    for pattern in (
        r"speed +[\d.,]+ windows/s",
        r"time left +.+, then 55 windows to decode",
        r"last word +.+ ago",
        r"preview +.*/preview\.png, .+ old",
    ):
        assert re.search(pattern, page), pattern
    row = status_rows([status])[1]
    assert row[3] == f"{100 * told['done'] / (21 * 55):.1f} %"
    assert row[5]
    assert json.loads(json.dumps(status.tree()))["painting"]["steps"] == STEPS
    (solving / "run.json").write_bytes(record)


def test_once_the_canvas_is_solved_the_decoded_windows_are_counted(config, tmp_path):
    run = at_work(stopped_at(tmp_path / "run", {**config, "steps": 2, "batch_size": 1}, "work/bands.json"))
    status = read_status(run)
    assert status.painting
    assert (status.painting.step, status.painting.saved_steps) == (2, 2)
    page = status_page(status)
    assert re.search(r"step +2 of 2 \(100\.0 %\), 55 windows each", page)
    assert re.search(r"decoded +\d+ of 55 windows \(\d+\.\d %\)", page)
    assert "to decode" not in page


def test_a_painting_that_is_done_has_no_such_lines_and_leaves_nothing_behind(config, tmp_path):
    assert run_here("paint", tmp_path / "run", {**config, "steps": 2}) == 0
    assert status_page(read_status(tmp_path / "run")) == f"{tmp_path / 'run'} (paint): published"
    assert not (tmp_path / "run" / "work").exists()


def test_a_painting_that_has_said_nothing_yet_has_no_such_lines(solving, tmp_path):
    run = Path(shutil.copytree(solving, tmp_path / "run"))
    (run / "work" / "progress.json").unlink()
    status = read_status(run)
    assert (status.state, status.painting) == ("stopped", None)
    assert "step" not in status_page(status).partition("log says")[0]


def test_a_damaged_word_harms_nothing(solving):
    file = solving / "work" / "progress.json"
    whole = file.read_bytes()
    other = [whole.replace(b'"done":', b'"done":-'), whole.replace(b'"windows":55', b'"windows":0'), b"[]", b"\xff"]
    other.append(re.sub(rb'"written":[\d.]+', b'"written":1e999', whole))
    other.append(re.sub(rb'"windows_per_sec":[\d.e-]+', b'"windows_per_sec":0', whole))
    for content in [*other, *(whole[:length] for length in range(0, len(whole), 20)), whole]:
        file.write_bytes(content)
        status = read_status(solving)
        assert status_page(status)
        json.dumps(status.tree(), allow_nan=False)
    assert status.painting
