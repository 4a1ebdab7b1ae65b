"""The real command line, in processes of its own."""

import json
import re
import subprocess
import sys

import pytest

from hdtrain.cli import main
from hdtrain.config.stages import STAGES
from hdtrain.formats.manifest import read_manifest

LIGHT = """
import importlib, pkgutil, sys
import hdtrain.cli, hdtrain.config, hdtrain.formats, sharding, launchers
for package in (hdtrain.config, hdtrain.formats, sharding, launchers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
heavy = {"torch", "deepspeed", "diffusers", "timm", "torchvision"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_what_the_login_node_runs_does_not_import_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


HELP = """
import sys
import hdtrain.cli
try:
    hdtrain.cli.main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "numpy", "tqdm", "PIL", "webdataset", "pyarrow"} & set(sys.modules)
sys.exit(f"imported: {heavy} among {len(sys.modules)}" if heavy or len(sys.modules) > 450 else 0)
"""


def test_help_names_every_stage_and_imports_little():
    """Half a second on a machine of 2026; here told by what it imports, 344 modules, a quarter of them hdtrain's."""
    done = subprocess.run([sys.executable, "-c", HELP, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(STAGES) <= set(re.findall(r"[\w-]+", done.stdout))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_reports_a_misspelt_key(stage, capsys):
    assert main([stage, "qqqqqq=1", "--out", "run"]) == 2
    assert "qqqqqq: unknown key; valid keys: " in capsys.readouterr().err


def test_all_mistakes_come_at_once_with_the_nearest_key(cli, tmp_path):
    config = tmp_path / "ldm.yaml"
    config.write_text("latents: l\nvae: v\noptim: {lr: -1}\nbatch: {micro_batchsize: 2, global_batch_size: 4}\n")
    error = cli("train-ldm", config, "duration.image=8", "--out", "run", code=2).stderr
    assert "Traceback" not in error
    assert f"error: {config}: 4 problems" in error
    assert "optim.lr: input should be greater than 0, got -1" in error
    assert "batch.micro_batchsize: unknown key; did you mean 'batch.micro_batch_size'?" in error
    assert "duration.image: unknown key; did you mean 'duration.images'?" in error
    assert "duration.images: missing" in error
    assert not (tmp_path / "run").exists()


def test_an_unpublished_parent_is_refused_with_the_command_that_publishes_it(hdtrain):
    error = hdtrain("verify", "images=nowhere", "--out", "run", code=2).err
    assert "nowhere/manifest.json is not published; run `hdtrain shard CONFIG --out" in error


def test_raw_images_in_place_of_a_run_are_told_to_be_packed_elsewhere(hdtrain, make_images):
    notes = make_images("raw", {"a": 1}).parent / "notes.txt"
    error = hdtrain("verify", "images=raw", "--out", "run", code=2).err
    assert "raw is a folder of other things, expected a run directory: `hdtrain shard 'sources=[{path:" in error
    notes.write_text("")
    error = hdtrain("verify", f"images={notes}", "--out", "run", code=2).err
    assert "notes.txt is a file, expected a run directory" in error


def test_words_that_are_no_overrides_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "images=a", "--out", "run", "--rank", "a=1"])
    assert "expected key=value, got: --rank" in capsys.readouterr().err


@pytest.fixture
def shard(hdtrain, make_images):
    make_images("raw", {"a": 3, "b": 2})
    return lambda *args, **more: hdtrain("shard", "sources=[{path: raw}]", "--out", "shards", *args, **more)


def test_one_stage_publishes_and_the_same_command_skips(shard, tmp_path):
    assert "to do" in shard("--dry-run").out
    assert not (tmp_path / "shards").exists()
    shard()
    manifest = tmp_path / "shards" / "manifest.json"
    assert read_manifest(manifest.parent).num_samples == 5
    written = manifest.stat().st_mtime_ns
    assert "skip, done" in shard().out
    assert manifest.stat().st_mtime_ns == written
    assert "(shard): done" in shard("--dry-run").out


def test_the_resolved_config_holds_absolute_paths_and_every_default(shard, tmp_path):
    shard()
    text = (tmp_path / "shards" / "config.yaml").read_text()
    assert f"path: {tmp_path / 'raw'}" in text
    assert "samples_per_shard: 1000" in text


def test_what_the_stage_prints_is_kept_in_a_log_of_the_attempt(shard, tmp_path):
    for image in (tmp_path / "raw").rglob("*.png"):
        image.write_bytes(b"")
    error = shard(code=2)
    log = tmp_path / "shards" / "logs" / "001.log"
    message = log.read_text().strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert message in error.out + error.err
    assert f"its log: {log}" in error.err
    shard(code=2)
    assert (tmp_path / "shards" / "logs" / "002.log").exists()


def test_another_config_moves_the_old_run_aside_and_deletes_nothing(shard, tmp_path):
    shard()
    old = read_manifest(tmp_path / "shards")
    occupied = tmp_path / f"shards.previous-{old.fingerprint[:8]}"
    occupied.mkdir()
    assert f"changed: the old run moves to {occupied.name}-2" in shard("samples_per_shard=2").out
    assert read_manifest(tmp_path / f"{occupied.name}-2") == old
    assert len(read_manifest(tmp_path / "shards").shards) == 3
    assert not list(occupied.iterdir())


def test_an_attempt_that_made_nothing_is_not_moved_aside_and_its_log_stays(shard, hdtrain, tmp_path):
    shard()
    for path in (tmp_path / "shards/shards").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:1000])
    for number in (1, 2):
        hdtrain("inspect", "images=shards", f"seed={number}", "--out", "seen", code=2)
    assert not list(tmp_path.glob("seen.previous-*"))
    assert [path.name for path in sorted((tmp_path / "seen/logs").iterdir())] == ["001.log", "002.log"]
    assert "seed: 2" in (tmp_path / "seen/config.yaml").read_text()


def test_a_folder_that_is_no_run_directory_is_left_alone(shard, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.txt").write_text("precious")
    assert "is not a run directory: it holds thesis.txt" in shard(code=2).err
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["thesis.txt"]


def test_a_manifest_of_another_schema_version_is_refused_as_a_parent_and_made_aga(shard, hdtrain, tmp_path):
    shard()
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    error = hdtrain("verify", "images=shards", "--out", "checked", code=2).err
    assert "has schema version 99, this hdtrain reads version 1" in error
    assert "moves to shards.previous-" in shard("--dry-run").out


def test_a_second_command_at_the_same_directory_is_told_who_works_there(shard, cli, tmp_path):
    import fcntl

    shard()
    with (tmp_path / ".lock-seen").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        done = cli("inspect", "images=shards", "--out", "seen", code=2)
        assert "seen is in use by process 4711" in done.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/run", "file/run cannot be made"),
        ("raw", "raw lies in the raw data of sources.0.path"),
        ("raw/run", "raw/run lies in the raw data of sources.0.path"),
        ("", "expected a folder, got nothing"),
    ],
)
def test_an_out_that_cannot_be_is_refused_and_nothing_is_written(cli, make_images, tmp_path, out, message):
    make_images("raw", 3)
    (tmp_path / "file").write_text("")
    before = sorted(path.name for path in tmp_path.rglob("*") if not path.name.startswith(".lock"))
    done = cli("shard", "sources=[{path: raw}]", "--out", out, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*") if not path.name.startswith(".lock")) == before
