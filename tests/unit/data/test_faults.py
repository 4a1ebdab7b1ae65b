"""Disks that fail: a moment is waited out, for longer is an error that names shard, sample, error and what to do."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hdtrain.config.training import ReaderConfig, ShardAccess
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.errors import ShardError
from hdtrain.formats.read_files import FIRST_PAUSE, ReadFile, patiently
from hdtrain.formats.shards import ShardReader


def source(dataset, retry_sec):
    config = ReaderConfig(resolution=32, threads=2, block_shards=1, cache_bytes=0, retry_sec=retry_sec)
    return TrainingImages([dataset], config, seed=0)


def tar_of(dataset, images) -> Path:
    """The shard that is read first."""
    directory, manifest = dataset
    return directory / manifest.shards[images.order.shards_from(0)[0]].name


@pytest.mark.parametrize("suffix", [".tar", ".json"])
def test_a_shard_that_comes_back_is_waited_for(write, capsys, suffix):
    dataset = write("a", [4, 4])
    images = source(dataset, retry_sec=20)
    expected = images.batch(range(4)).keys
    images = source(dataset, retry_sec=20)
    file = tar_of(dataset, images).with_suffix(suffix)
    file.rename(file.with_suffix(".away"))
    threading.Timer(0.6, lambda: file.with_suffix(".away").rename(file)).start()
    assert images.batch(range(4)).keys == expected
    assert capsys.readouterr().err.count("trying again for 20 s") >= 1


def test_a_shard_that_stays_away_stops_with_shard_sample_error_and_advice(write):
    dataset = write("a", [4, 4])
    images = source(dataset, retry_sec=0.3)
    tar_of(dataset, images).unlink()
    started = time.monotonic()
    with pytest.raises(
        ShardError,
        match=r"\d\.tar: sample a-\d at byte \d+ cannot be read: shard is missing; tried for 0\.3 s; when",
    ):
        images.batch(range(4))
    assert time.monotonic() - started > 0.3


def test_a_read_error_is_told_with_its_place():
    memory = ReadFile(Path("/proc/self/mem"), 0, retry_sec=0.1)  # address 0 is mapped nowhere: a real EIO
    said = rf"/proc/self/mem: sample k at byte 0 cannot be read: {os.strerror(errno.EIO)}; tried for 0\.1 s"
    with pytest.raises(ShardError, match=said):
        memory.read(512, 0, "sample k")
    with pytest.raises(ShardError, match=said):
        memory.read_into(np.empty(512, np.uint8), 0, "sample k")


def test_pauses_grow_and_the_patience_is_kept():
    times: list[float] = []

    def fail() -> None:
        times.append(time.monotonic())
        raise OSError(errno.EIO, "broken")

    with pytest.raises(ShardError, match="the disk: broken; tried for 1 s"):
        patiently(fail, "the disk", retry_sec=1.0)
    pauses = np.diff(times)
    assert 4 <= len(pauses) <= 8  # a busy machine sleeps longer than it was asked to
    assert (pauses[:-1] > 0.9 * FIRST_PAUSE * 2.0 ** np.arange(len(pauses) - 1)).all()
    assert 1.0 <= times[-1] - times[0] < 3
    with pytest.raises(ShardError, match=r"the disk: broken; when"):
        patiently(fail, "the disk", retry_sec=0)


@pytest.mark.parametrize("keep", [600, "half an image"])
def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_does_not_kill_the_process(write, keep):
    dataset = write("a", [4])
    reader = ShardReader(dataset[0] / dataset[1].shards[0].name)
    assert reader.image(0).startswith(b"\x89PNG")
    start = reader.sidecar.offsets[3]
    os.truncate(reader.path, start + 100 if keep == "half an image" else keep)
    end = start + 100 if keep == "half an image" else start
    with pytest.raises(ShardError, match=rf"0\.tar: ends at byte {end}, in the middle of sample a-3"):
        reader.image(3)


def test_latents_wait_and_fail_in_the_same_way(write_latents):
    (directory, manifest), _ = write_latents("a", [4])
    tar = directory / manifest.shards[0].name
    latents = TrainingLatents([(directory, manifest)], seed=0, access=ShardAccess(retry_sec=20))
    tar.rename(tar.with_suffix(".away"))
    threading.Timer(0.6, lambda: tar.with_suffix(".away").rename(tar)).start()
    assert len(latents.batch(range(4)).keys) == 4
    tar.unlink()
    latents = TrainingLatents([(directory, manifest)], seed=0, access=ShardAccess(retry_sec=0.2))
    with pytest.raises(ShardError, match=r"0\.tar: a record at byte \d+ cannot be read: shard is missing"):
        latents.batch(range(4))


def test_one_reader_serves_many_threads(write):
    directory, manifest = write("a", [40])
    reader = ShardReader(directory / manifest.shards[0].name)
    expected = [reader.image(i) for i in range(40)]
    reader.close()
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(400):
            if reader.image((start + i) % 40) != expected[(start + i) % 40]:
                wrong.append(i)
            if i % 50 == start:
                reader.close()  # as when another shard needs its place

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
