"""Checkpoints: complete or absent, checked on reading, never fewer than asked."""

import shutil

import pytest

from hdtrain.errors import CheckpointError
from hdtrain.formats.checkpoint import find_latest, prune, read_meta, write_checkpoint


def write(root, step, content=b"weights"):
    return write_checkpoint(root, step, lambda folder: (folder / "model.safetensors").write_bytes(content), {"lr": 0.1})


def test_the_latest_is_the_one_of_the_highest_step(tmp_path):
    assert find_latest(tmp_path / "none") is None
    paths = [write(tmp_path, step) for step in (5, 120, 40)]
    assert find_latest(tmp_path) == paths[1]
    assert (tmp_path / "latest").read_text() == paths[2].name
    meta = read_meta(paths[1])
    assert (meta["step"], meta["lr"]) == (120, 0.1)


def test_a_half_written_checkpoint_is_not_seen_and_does_not_hinder_the_next(tmp_path):
    before = write(tmp_path, 1)

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fail, {})
    assert find_latest(tmp_path) == before
    assert find_latest(tmp_path) != (after := write(tmp_path, 2))
    assert (find_latest(tmp_path), (after / "model.safetensors").read_bytes()) == (after, b"weights")


@pytest.mark.parametrize("damage", ["alter", "remove"])
def test_altered_or_missing_files_are_refused_with_what_to_do(tmp_path, damage):
    folder = write(tmp_path, 1)
    file = folder / "model.safetensors"
    if damage == "alter":
        file.write_bytes(b"weightz")
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"missing or altered since it was written; remove {folder}"):
        read_meta(folder)


def test_a_folder_without_readable_meta_is_refused(tmp_path):
    folder = write(tmp_path, 1)
    (folder / "meta.json").write_text('{"version": 9}')
    with pytest.raises(CheckpointError, match="version 9, this hdtrain reads 1"):
        read_meta(folder)
    (folder / "meta.json").unlink()
    assert find_latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"meta\.json cannot be read"):
        read_meta(folder)


def test_the_same_step_again_replaces_and_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 3):
        write(tmp_path, step, b"%d" % step)
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    prune(tmp_path, keep=5)
    assert len(list(tmp_path.glob("step-*"))) == 2
    shutil.rmtree(find_latest(tmp_path))
    assert find_latest(tmp_path).name == "step-00000002"
