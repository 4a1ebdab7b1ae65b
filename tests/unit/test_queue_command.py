"""`hdtrain status|cancel|retry|logs` of what `hdtrain launch` submitted to the real local queue."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitted_runs import all_over, kinds
from tiny_chain import READER, train_config, write_raw

from hdtrain.formats.submission import submissions


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def break_images(folder: Path) -> dict[Path, bytes]:
    """Their content before."""
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.png"))}
    for path in before:
        path.write_bytes(b"")
    return before


def test_the_whole_graph_is_told_from_the_first_moment_to_the_end(recipe, hdtrain, states, tmp_path):
    hdtrain("launch", recipe, "--cluster", "local")
    first = states("runs/demo")
    assert list(first) == ["shards", "smaller", "smallest"]
    assert (first["smallest"]["state"], first["smallest"]["detail"]) == ("not begun", "waits for smaller")
    assert first["smallest"]["job"]["waits_for"] == ["smaller"]
    assert not (tmp_path / "runs/demo/smallest").exists()
    assert "smallest (reshard): not begun: waits for smaller" in hdtrain("status", "runs/demo/smallest").out
    said = hdtrain("logs", "runs/demo/smallest", code=2).err
    assert "has printed nothing yet (not begun: waits for smaller)" in said

    last = states("runs/demo", until=all_over)
    assert set(kinds(last).values()) == {"published"}
    assert "nothing to submit again in runs/demo: 3 published" in hdtrain("retry", "runs/demo").out
    assert "nothing of runs/demo is in the queue: shards published" in hdtrain("cancel", "runs/demo").out
    table = hdtrain("status", "runs/demo").out.splitlines()
    assert table[0].split()[:4] == ["run", "stage", "job", "state"]
    assert table[3].split()[:4] == ["smallest", "reshard", "local", "published"]


def test_what_failed_is_shown_with_its_error_and_retried_alone(recipe, hdtrain, states, tmp_path):
    before = break_images(tmp_path / "raw")
    hdtrain("launch", recipe, "--cluster", "local")
    found = states("runs/demo", until=all_over)
    assert kinds(found) == dict.fromkeys(["smaller", "smallest"], "will not run") | {"shards": "failed"}
    assert found["smaller"]["detail"] == "shards failed"
    assert found["smallest"]["detail"] == "smaller will not run"
    assert "cannot be used" in found["shards"]["message"]
    assert found["shards"]["log"] == "runs/demo/shards/logs/001.log"
    shown = hdtrain("status", "runs/demo").out
    assert re.search(r"^smaller +reshard +local +will not run: shards failed$", shown, re.MULTILINE)
    assert re.search(r"^shards: .*cannot be used.* \(log: runs/demo/shards/logs/001\.log\)$", shown, re.MULTILINE)
    logs = hdtrain("logs", "runs/demo")
    assert "cannot be used" in logs.out
    assert "shards/logs/001.log (failed" in logs.err

    for path, content in before.items():
        path.write_bytes(content)
    said = hdtrain("retry", "runs/demo/smaller", code=2).err
    assert "smaller waits for shards (failed); retry the whole folder: hdtrain retry" in said

    first = submissions(tmp_path / "runs/demo")[0]
    (first.code / "hdtrain/of_then.py").touch()
    recipe.write_text("what was submitted counts")
    said = hdtrain("retry", "runs/demo").out
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["shards", "smaller", "smallest"]
    second = submissions(tmp_path / "runs/demo")[1]
    assert (second.code / "hdtrain/of_then.py").exists()
    assert (second.read().retry_of, second.read().commit) == ("001", first.read().commit)
    found = states("runs/demo", until=all_over)
    assert set(kinds(found).values()) == {"published"}
    assert "earlier attempts: shards.previous-" in hdtrain("logs", "runs/demo/shards").err
    assert len(submissions(tmp_path / "runs/demo")) == 2
    assert first.file.exists()


def test_a_retry_of_one_run_takes_what_waited_for_it_along_and_can_take_new_code(recipe, hdtrain, states, tmp_path):
    before = break_images(tmp_path / "raw")
    hdtrain("launch", recipe, "--cluster", "local")
    states("runs/demo", until=all_over)
    for path, content in before.items():
        path.write_bytes(content)
    (submissions(tmp_path / "runs/demo")[0].code / "hdtrain/of_then.py").touch()
    hdtrain("retry", "runs/demo/shards", "--fresh-code")
    second = submissions(tmp_path / "runs/demo")[1]
    assert not (second.code / "hdtrain/of_then.py").exists()
    assert [job.name for job in second.read().jobs] == ["shards", "smaller", "smallest"]
    hdtrain("cancel", "runs/demo")
    assert kinds(states("runs/demo", until=all_over))["smallest"] == "cancelled"


@pytest.fixture
def vae_config(tmp_path: Path, hdtrain) -> Callable[..., Path]:
    """A training's config: `vae_config(images)`; its shards are published."""
    raw = write_raw(tmp_path / "images")
    for split, name in (("unlabelled", "unlabelled"), ("test", "test")):
        hdtrain("shard", f"sources=[{{path: {raw / name}}}]", f"split={split}", "--out", f"data/{name}")

    def write(images: int, **more: Any) -> Path:
        config = {
            "images": ["data/unlabelled"],
            "preset": "kl-f4-tiny",
            "reader": READER,
            "perceptual": {"kind": "none"},
            **train_config(images),
            **more,
        }
        (tmp_path / "vae.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "vae.yaml"

    return write


@pytest.mark.slow
def test_a_cancelled_training_saves_first_and_a_retry_goes_on_there(vae_config, hdtrain, states, tmp_path):
    hdtrain("launch", "train-vae", vae_config(4000), "--out", "runs/vae", "--cluster", "local")
    found = states("runs/vae", until=lambda found: (found["vae"]["progress"] or {}).get("step", 0) > 1)
    assert found["vae"]["state"] == "running"
    assert found["vae"]["job"]["active"]
    assert re.search(r"job +local, on .*, submitted .* ago\n", page := hdtrain("status", "runs/vae").out), page
    assert "nothing to submit again in runs/vae: 1 running" in hdtrain("retry", "runs/vae").out

    following = subprocess.Popen(
        [sys.executable, "-m", "hdtrain", "logs", "runs/vae", "--follow", "--lines", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = hdtrain("cancel", "runs").out
    assert re.search(r"^vae +local +was running: it saves, and ends$", said, re.MULTILINE)
    found = states("runs/vae", until=all_over)
    assert kinds(found) == {"vae": "cancelled"}
    assert (found["vae"]["job"]["requeued"], found["vae"]["log"]) == (0, None)
    step = found["vae"]["progress"]["step"]
    assert found["vae"]["progress"]["checkpoint"]["name"] == f"step-{step:08d}"
    out, err = following.communicate(timeout=60)
    assert "stopped by SIGTERM" in out
    assert "runs/vae: cancelled" in err

    hdtrain("retry", "runs")
    states("runs/vae", until=lambda found: found["vae"]["progress"]["step"] > step)
    logs = hdtrain("logs", "runs/vae")
    assert f"going on from step-{step:08d}" in logs.out
    assert "002.log (running" in logs.err
    assert "earlier attempts: 001.log" in logs.err
    assert f"going on from step-{step:08d}" in hdtrain("logs", "runs/vae", "--rank", 0).out
    assert "rank 3 has printed nothing; there are those of ranks 0 to 0" in (
        hdtrain("logs", "runs/vae", "--rank", 3, code=2).err
    )
    hdtrain("cancel", "runs/vae", "--now")
    states("runs/vae", until=all_over)


@pytest.mark.slow
def test_a_sweep_is_a_table_of_results_with_the_best_marked(vae_config, hdtrain, states, tmp_path):
    (tmp_path / "sweep.yaml").write_text("keys: {optim.lr: [1.0e-6, 0.002]}\n")
    config = vae_config(16, validation="data/test", validation_images=12)
    profile = {"kind": "local", "resources": {"here": {}}, "min_free_gb": 0, "max_jobs": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(profile))
    hdtrain("launch", "train-vae", config, "--out", "sweep", "--sweep", "sweep.yaml", "--cluster", "two.yaml")
    found = states("sweep", until=all_over, patience=120)
    runs = {row["sweep"]["optim.lr"]: row for row in found.values()}
    assert list(runs) == [1e-6, 0.002]
    last = {
        lr: [*map(json.loads, Path(row["path"], "metrics.jsonl").read_text().splitlines())][-1]
        for lr, row in runs.items()
    }
    name = next(key for key in last[1e-6] if key.startswith("validation/"))
    assert {lr: row["validation"][name] for lr, row in runs.items()} == {lr: row[name] for lr, row in last.items()}
    best = min(last, key=lambda lr: last[lr][name])
    assert {lr: row["best"] for lr, row in runs.items()} == {lr: lr == best for lr in runs}

    lines = hdtrain("status", "sweep").out.splitlines()
    assert lines[0].split()[:4] == ["run", "optim.lr", "state", "images"]
    assert f"{name.removeprefix('validation/')} (validation)" in lines[0]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["000", "1e-06", "published", "16"],
        ["001", "0.002", "published", "16"],
    ]
    assert [line.endswith("best") for line in lines[1:3]] == [lr == best for lr in runs]


def test_runs_that_were_never_submitted_are_said_to_be_so(hdtrain, make_images):
    make_images("raw", 3)
    hdtrain("shard", "sources=[{path: raw}]", "--out", "runs/s")
    assert "runs/s is in no queue: it was not submitted" in hdtrain("cancel", "runs/s", code=2).err
    assert "runs/s was not submitted by `hdtrain launch`" in hdtrain("retry", "runs/s", code=2).err
    assert "no logs of single ranks" in hdtrain("logs", "runs/s", "--rank", 0, code=2).err
    assert "shard" in hdtrain("logs", "runs").out
    assert "no run in it has written TensorBoard events" in hdtrain("tensorboard", "runs", code=2).err
    assert "nowhere: no such folder" in hdtrain("tensorboard", "nowhere", code=2).err
