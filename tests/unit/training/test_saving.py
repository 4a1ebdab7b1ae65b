"""Checkpoints in the background: what was gathered is what is written, and what goes wrong is told."""

import errno
import os
import resource
import stat
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import DurationConfig, EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import init_process_group
from hdtrain.distributed.world import World
from hdtrain.errors import CheckpointError
from hdtrain.formats.checkpoint import find_latest, write_checkpoint
from hdtrain.formats.run_dir import RunDir
from hdtrain.training.engine import Engine
from hdtrain.training.saving import Checkpoints, write_tensors


def engine(name: str = "net", snapshots: int = 16) -> Engine:
    init_process_group()
    torch.manual_seed(0)
    plan, ema = BatchPlan(4, 4, 1, 1), EmaConfig(snapshots=snapshots)
    return Engine(name, nn.Linear(3, 2), OptimConfig(lr=0.1), plan, EngineConfig(), ema)


def step(net: Engine) -> None:
    net.backward(net(torch.ones(4, 3)).square().mean())
    assert net.step(0.1)


def checkpoints(folder, **duration) -> Checkpoints:
    return Checkpoints(RunDir(folder), DurationConfig(images=100, **duration), World())


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing a checkpoint begins when this event is set."""
    ready = threading.Event()

    def late(*arguments):
        ready.wait(30)
        return write_checkpoint(*arguments)

    monkeypatch.setattr("hdtrain.training.saving.write_checkpoint", late)
    return ready


def test_a_checkpoint_holds_the_state_at_the_call_although_it_is_written_later(tmp_path, slow_disk):
    net, saving = engine(), checkpoints(tmp_path)
    step(net)
    expected = net.state(is_main=True)
    saving.save(1, [net], {"note": 7})
    for _ in range(3):
        step(net)
    assert find_latest(tmp_path / "checkpoints") is None
    slow_disk.set()
    saving.wait()
    folder = find_latest(tmp_path / "checkpoints")
    for stem, tensors in expected.items():
        found = load_file(folder / f"{stem}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in found)
    other = engine()
    meta = checkpoints(tmp_path).load([other])
    assert (meta["step"], meta["note"], meta["steps"], other.steps) == (1, 7, {"net": 1}, 1)


def test_the_next_save_waits_for_the_one_before_it(tmp_path, slow_disk):
    net, saving = engine(), checkpoints(tmp_path)
    step(net)
    saving.save(1, [net], {})
    threading.Timer(0.2, slow_disk.set).start()
    saving.save(2, [net], {})
    assert slow_disk.is_set()
    saving.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000001", "step-00000002"]
    assert saving.save_sec >= 0.2


@pytest.mark.parametrize("then", ["check", "wait", "save", "in_background"])
def test_what_went_wrong_in_the_background_is_raised_although_later_writes_went_well(tmp_path, then):
    net, saving, begin, done = engine(), checkpoints(tmp_path), threading.Event(), threading.Event()

    def fail():
        begin.wait(30)
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    saving.in_background(fail)
    saving.in_background(done.set)
    begin.set()
    assert done.wait(30)
    calls = {"save": lambda: saving.save(1, [net], {}), "in_background": lambda: saving.in_background(done.set)}
    with pytest.raises(OSError, match="No space left"):
        calls.get(then, getattr(saving, then))()


def test_a_full_disk_is_the_systems_error_and_leaves_the_checkpoint_before(tmp_path):
    net, saving = engine(), checkpoints(tmp_path)
    step(net)
    saving.save(1, [net], {})
    saving.wait()
    step(net)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        saving.save(2, [net], {})
        with pytest.raises(OSError, match="File too large") as error:
            saving.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    assert error.value.filename.endswith(".safetensors")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    saving.save(2, [net], {})
    saving.wait()
    assert find_latest(tmp_path / "checkpoints").name == "step-00000002"


def test_what_is_written_is_for_whom_the_umask_allows_it(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)}, {"updates": "5"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert (file.get_tensor("x").tolist(), file.metadata()) == ([1, 1, 1], {"updates": "5"})


def test_without_a_checkpoint_nothing_is_loaded_and_leftovers_go(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000001.tmp"
    left.mkdir(parents=True)
    assert checkpoints(tmp_path).load([engine()]) is None
    assert not left.exists()


def test_a_checkpoint_of_other_engines_is_refused(tmp_path):
    saving = checkpoints(tmp_path)
    saving.save(3, [engine("autoencoder")], {})
    saving.wait()
    with pytest.raises(CheckpointError, match="step-00000003: holds no state of discriminator"):
        checkpoints(tmp_path).load([engine("autoencoder"), engine("discriminator")])


def test_only_as_many_are_kept_as_asked(tmp_path):
    net, saving = engine(), checkpoints(tmp_path, keep_checkpoints=2, keep_best=1)
    for number, loss in enumerate([0.9, 0.1, 0.5, 0.4], start=1):
        saving.save(number, [net], {"validation": loss})
    saving.wait()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000003", "step-00000004"]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000002"


def test_the_post_hoc_averages_are_written_so_often_and_at_the_end(tmp_path):
    net, saving, expected = engine(snapshots=4), checkpoints(tmp_path), {}
    for number in range(1, 11):
        step(net)
        saving.snapshot(number, 10, 4 * number, [net])
        expected[f"images-{4 * number:012d}"] = net.averages(["ema_std_0.05", "ema_std_0.10"], is_main=True)
    saving.wait()
    paths = RunDir(tmp_path).ema_snapshots
    assert [path.stem for path in paths] == [f"images-{4 * number:012d}" for number in (3, 6, 9, 10)]
    for path in paths:
        found, wanted = load_file(path), expected[path.stem]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"updates": str(int(path.stem.removeprefix("images-")) // 4)}
