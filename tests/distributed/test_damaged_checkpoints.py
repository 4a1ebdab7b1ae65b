"""Full disks and altered checkpoints: one message, nothing lost, and the same command goes on."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from hdtrain.formats.checkpoint import check_files, complete, read_meta

STEPS, BATCH = 12, 4
CHANGES = {
    "duration": {
        "images": STEPS * BATCH,
        "checkpoint_every_images": 3 * BATCH,
        "visualise_every_images": 1000 * BATCH,
        "keep_checkpoints": 10,
    },
    "ema": {"post_hoc": False},
}


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("damaged") / "whole"
    return ranks.run("train-ldm", directory, chain.config("ldm", **CHANGES), 2)


@pytest.fixture
def after_three_steps(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003")
    return run


def published(run) -> bytes:
    return (run / "model" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_checkpoint_that_cannot_be_written_stops_with_one_line(chain, ranks, whole, after_three_steps):
    run, config = after_three_steps, chain.config("ldm", **CHANGES)
    ranks.run("train-ldm", run, config, 2, code=None, largest_file=3_000_000)
    assert 0 not in ranks.codes
    folder = run / "checkpoints"
    assert f"error: File too large: {folder / '.step-00000006.tmp'}" in ranks.said()
    assert "free some room, then run the same command" in ranks.said()
    assert [path.name for path in complete(folder)] == ["step-00000003"]
    assert not list(folder.glob(".*"))
    ranks.run("train-ldm", run, config, 2)
    assert "going on from step-00000003" in ranks.said()
    assert published(run) == published(whole)


def test_altered_bytes_in_a_checkpoint_are_found_and_the_one_before_serves(chain, ranks, whole, tmp_path):
    run, config = tmp_path / "run", chain.config("ldm", **CHANGES)
    for step in ("step-00000003", "step-00000006"):
        shutil.copytree(whole / "checkpoints" / step, run / "checkpoints" / step)
    damaged = run / "checkpoints" / "step-00000006" / "denoiser.exp_avg.safetensors"
    with damaged.open("r+b") as stream:
        stream.seek(1_000_000)
        byte = stream.read(1)
        stream.seek(1_000_000)
        stream.write(bytes([byte[0] ^ 1]))
    ranks.run("train-ldm", run, config, 2, code=None)
    assert 0 not in ranks.codes, "the rank that ends first takes the other's connection, or the server kills it"
    assert f"{damaged}: missing or altered since it was written; remove {damaged.parent}" in ranks.said()
    shutil.rmtree(damaged.parent)
    ranks.run("train-ldm", run, config, 2)
    assert "going on from step-00000003" in ranks.said()
    assert published(run) == published(whole)


FULL_DISK = """
set -e
mount -t tmpfs -o size="$SIZE" none "$DISK"
if [ "$FILL" ]; then
    (while [ ! -e "$DISK/run/checkpoints/step-00000003" ]; do sleep 0.02; done
     cat /dev/zero > "$DISK/filled") 2>/dev/null &
fi
"$@" > "$LOGS/first" 2>&1 && code=0 || code=$?
echo $code > "$LOGS/code"
ls "$DISK/run/checkpoints" > "$LOGS/kept"
"$@" > "$LOGS/still" 2>&1 && code=0 || code=$?
echo $code >> "$LOGS/code"
rm -f "$DISK/filled"
mount -o remount,size=2g "$DISK"
"$@" > "$LOGS/again" 2>&1 && code=0 || code=$?
echo $code >> "$LOGS/code"
cp -r "$DISK/run" "$LOGS/run"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fill"), [("100m", ""), ("300m", "by another program")])
def test_a_full_disk_is_one_message_and_once_there_is_room_the_same_command_goes_on(chain, whole, tmp_path, size, fill):
    """With the real command line, two ranks and a file system of its own."""
    isolated = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    for name in ("disk", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "ldm.yaml").write_text(yaml.safe_dump(chain.config("ldm", **CHANGES)))
    command = [sys.executable, "-m", "hdtrain", "train-ldm", str(tmp_path / "ldm.yaml")]
    command += ["--out", str(tmp_path / "disk" / "run"), "--ranks", "2"]
    places = {"DISK": str(tmp_path / "disk"), "LOGS": str(tmp_path / "logs"), "SIZE": size, "FILL": fill}
    variables = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
    subprocess.run([*isolated, "bash", "-c", FULL_DISK, "bash", *command], env=variables, check=True)
    said = {name: (tmp_path / "logs" / name).read_text() for name in ("first", "still", "again")}
    assert (tmp_path / "logs" / "code").read_text().split() == ["2", "2", "0"], said
    for name in ("first", "still"):
        assert said[name].count("error:") == said[name].count("error: No space left on device: ") == 1, said[name]
        assert "Traceback" not in said[name]
    assert "step-00000003" in (tmp_path / "logs" / "kept").read_text()
    assert "going on from step-0000000" in said["again"]
    run = tmp_path / "logs" / "run"
    assert published(run) == published(whole)
    for folder in complete(run / "checkpoints"):
        check_files(folder, read_meta(folder))
