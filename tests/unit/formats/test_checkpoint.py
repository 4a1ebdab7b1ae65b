"""Checkpoints: complete or absent, checked before they are loaded, the newest and the best are kept."""

import shutil

import pytest

from hdtrain.errors import CheckpointError
from hdtrain.formats import checkpoint
from hdtrain.formats.checkpoint import check_files, find_latest, prune, read_meta, remove_leftovers, write_checkpoint


def write(root, step, content=b"weights", **meta):
    files = {"model.safetensors": content, "ema.safetensors": b"average"}
    return write_checkpoint(
        root,
        step,
        lambda folder: [(folder / name).write_bytes(data) for name, data in files.items()],
        {"lr": 0.1, **meta},
    )


def kept(root) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_the_latest_is_the_one_of_the_highest_step(tmp_path):
    assert find_latest(tmp_path / "none") is None
    paths = [write(tmp_path, step) for step in (5, 120, 40)]
    assert find_latest(tmp_path) == paths[1]
    assert (tmp_path / "latest").read_text() == paths[2].name
    meta = read_meta(paths[1])
    assert (meta["step"], meta["lr"]) == (120, 0.1)


def test_what_could_not_be_written_leaves_nothing_and_does_not_hinder_the_next(tmp_path):
    before = write(tmp_path, 1)

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fail, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", before.name]
    assert find_latest(tmp_path) == before
    after = write(tmp_path, 2)
    assert (find_latest(tmp_path), (after / "model.safetensors").read_bytes()) == (after, b"weights")


def test_what_a_kill_left_is_not_seen_and_is_removed(tmp_path):
    before = write(tmp_path, 1)
    half = tmp_path / ".step-00000002.tmp"
    shutil.copytree(before, half)  # all of it but the rename
    assert find_latest(tmp_path) == before
    remove_leftovers(tmp_path)
    assert not half.exists()
    assert kept(tmp_path) == [1]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["alter", "remove"])
def test_altered_or_missing_files_are_refused_with_what_to_do(tmp_path, damage, name):
    folder = write(tmp_path, 1)
    file = folder / name
    check_files(folder, read_meta(folder))
    if damage == "alter":
        file.write_bytes(file.read_bytes().replace(b"w", b"v").replace(b"g", b"h"))
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing or altered since it was written; remove {folder}"):
        check_files(folder, read_meta(folder))


def test_a_folder_without_readable_meta_is_refused(tmp_path):
    folder = write(tmp_path, 1)
    (folder / "meta.json").write_text('{"version": 1}')
    with pytest.raises(CheckpointError, match=rf"version 1, this hdtrain reads 2; remove {tmp_path} to train from"):
        read_meta(folder)
    (folder / "meta.json").unlink()
    assert find_latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"meta\.json cannot be read"):
        read_meta(folder)


def test_the_same_step_again_replaces_and_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 3):
        write(tmp_path, step, b"%d" % step)
    prune(tmp_path, keep=2)
    assert kept(tmp_path) == [2, 3]
    prune(tmp_path, keep=5)
    assert kept(tmp_path) == [2, 3]
    assert not list(tmp_path.glob(".*"))
    shutil.rmtree(find_latest(tmp_path))
    assert find_latest(tmp_path).name == "step-00000002"


@pytest.mark.parametrize("removal", ["replacing", "pruning"])
def test_a_kill_while_an_old_one_is_removed_leaves_none_that_only_looks_complete(tmp_path, monkeypatch, removal):
    for step in (1, 2):
        write(tmp_path, step)
    remove = shutil.rmtree

    def killed(folder, **options):
        if options or folder.name.startswith("."):
            for path in sorted(folder.glob("*.safetensors"))[:1]:
                path.unlink()
        if not options:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, keep=1) if removal == "pruning" else write(tmp_path, 2, b"again")
    monkeypatch.setattr(checkpoint.shutil, "rmtree", remove)
    for step in kept(tmp_path):
        folder = tmp_path / f"step-{step:08d}"
        check_files(folder, read_meta(folder))
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def test_the_best_by_validation_loss_stay_besides_the_newest(tmp_path):
    for step, loss in enumerate([0.5, 0.2, 0.3, None, float("nan"), 0.25, 0.4], start=1):
        write(tmp_path, step, validation=loss)
        prune(tmp_path, keep=2, keep_best=1)
        best = {1: 1}.get(step, 2)
        assert (tmp_path / "best").read_text() == f"step-{best:08d}"
        assert kept(tmp_path) == sorted({best, step, step - 1} - {0})
    prune(tmp_path, keep=1, keep_best=2)
    assert kept(tmp_path) == [2, 6, 7]
    for step, loss in ((8, 0.1), (9, 0.9)):
        write(tmp_path, step, validation=loss)
    prune(tmp_path, keep=1, keep_best=2)
    assert (kept(tmp_path), (tmp_path / "best").read_text()) == ([2, 8, 9], "step-00000008")


def test_without_a_validation_loss_there_is_no_best(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, validation=None)
    prune(tmp_path, keep=1, keep_best=5)
    assert kept(tmp_path) == [3]
    assert not (tmp_path / "best").exists()
