"""The node's cache: one download for all processes, never above its limit, nothing left of those that were killed."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset.gopen  # noqa: F401  # once here, and not in every process that is forked

from hdtrain.config.training import ReaderConfig
from hdtrain.data import cache as cache_module
from hdtrain.data.cache import NoRoomError, RemoteShard, ShardCache
from hdtrain.data.images import TrainingImages
from hdtrain.data.locks import stat_of
from hdtrain.errors import ShardError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.shards import ShardReader, sidecar_path

FORK = multiprocessing.get_context("fork")


class Far:
    """A data set that lies elsewhere. Every transfer of a tar adds a line to `log`."""

    def __init__(self, directory: Path, manifest: Manifest, log: Path):
        self.directory, self.manifest, self.log = directory, manifest, log
        log.touch()

    def shard(self, number: int, command: str = "cat") -> RemoteShard:
        entry = self.manifest.shards[number]
        tar = self.directory / entry.name
        return RemoteShard(entry, f"pipe:echo {number} >>{self.log}; {command} {tar}", f"pipe:cat {sidecar_path(tar)}")

    @property
    def transfers(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def far(write, tmp_path) -> Callable[[list[int]], Far]:
    return lambda sizes: Far(*write("far", sizes), tmp_path / "transfers")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.01)


def size_of(folder: Path) -> int:
    return sum(stat.st_size for path in folder.iterdir() if (stat := stat_of(path)))  # some may go meanwhile


def test_two_processes_that_want_one_shard_download_it_once(far, folder):
    corpus = far([20])
    shard = corpus.shard(0, "sleep 0.5; cat")
    results = FORK.Queue()

    def work() -> None:
        held = ShardCache(folder, 10**9, retry_sec=5).hold(shard)
        results.put((sha256_file(held.tar), ShardReader(held.tar, held.sidecar).sidecar.samples))

    processes = [FORK.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == [(shard.entry.sha256, 20)] * 3
    for process in processes:
        process.join()
    assert corpus.transfers == ["0"]
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".json", ".tar"]


def test_threads_of_one_process_download_once_too(far, folder):
    corpus = far([20])
    cache, held = ShardCache(folder, 10**9, retry_sec=5), []
    threads = [
        threading.Thread(target=lambda: held.append(cache.hold(corpus.shard(0, "sleep 0.3; cat")))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({shard.tar for shard in held}) == 1
    assert corpus.transfers == ["0"]


def test_a_long_wait_for_another_process_is_told(far, folder, monkeypatch, capsys):
    monkeypatch.setattr(cache_module, "TELL_AFTER_SEC", 0.2)
    corpus = far([20])
    cache = ShardCache(folder, 10**9, retry_sec=5)
    other = FORK.Process(target=lambda: cache.hold(corpus.shard(0, "sleep 1.5; cat")))
    other.start()
    until(lambda: corpus.transfers)
    assert cache.hold(corpus.shard(0), wait=False) is None
    cache.hold(corpus.shard(0)).close()
    other.join()
    assert corpus.transfers == ["0"]
    assert "which another process of this node is downloading: 0 of 0 MiB after" in capsys.readouterr().err


def test_the_shard_whose_use_is_longest_ago_goes_first_and_the_limit_is_never_passed(far, folder):
    corpus = far([5] * 6)
    largest = max(entry.bytes for entry in corpus.manifest.shards)
    limit = 3 * (largest + 4000)  # three shards with their sidecars
    cache = ShardCache(folder, limit, retry_sec=0.3)
    for number in (0, 1, 2, 0, 3, 0, 4, 5):
        cache.hold(corpus.shard(number)).close()
        assert size_of(folder) <= limit
        time.sleep(0.01)  # so that times of use differ
    assert corpus.transfers == ["0", "1", "2", "3", "4", "5"], "0 was always in use"
    cache.hold(corpus.shard(1)).close()
    assert corpus.transfers[-1] == "1", "1 had gone"


def test_a_shard_that_another_process_reads_is_not_thrown_out(far, folder):
    corpus = far([5] * 3)
    limit = 2 * (max(entry.bytes for entry in corpus.manifest.shards) + 4000)
    cache = ShardCache(folder, limit, retry_sec=0.3)
    held, ready = FORK.Queue(), FORK.Event()

    def read() -> None:
        shard = ShardCache(folder, limit, retry_sec=0.3).hold(corpus.shard(0))
        held.put(shard.tar)
        ready.wait(20)

    other = FORK.Process(target=read)
    other.start()
    tar = held.get(timeout=20)
    mine = cache.hold(corpus.shard(1))
    with pytest.raises(NoRoomError, match=r"no room for .*all else in its cache_max_bytes .* is being read"):
        cache.hold(corpus.shard(2))
    assert tar.exists()
    mine.close()
    cache.hold(corpus.shard(2)).close()
    assert tar.exists()
    ready.set()
    other.join()
    cache.hold(corpus.shard(1)).close()
    assert not tar.exists(), "nobody reads it any more, and its use is longest ago"


@pytest.mark.parametrize("next_one", ["same shard", "another shard", "new process"])
def test_a_download_that_was_killed_leaves_nothing_behind(far, folder, next_one):
    corpus = far([20, 20])
    cache = ShardCache(folder, 10**9, retry_sec=5)
    stuck = corpus.shard(0, "head -c 3000 /dev/zero; sleep 60; cat")
    killed = FORK.Process(target=lambda: cache.hold(stuck))
    killed.start()
    until(lambda: [path for path in folder.glob("*.part") if path.stat().st_blocks])
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert len(list(folder.glob("*.part"))) == 1
    if next_one == "same shard":
        held = cache.hold(corpus.shard(0))
        assert sha256_file(held.tar) == corpus.manifest.shards[0].sha256
    elif next_one == "another shard":
        cache.hold(corpus.shard(1))
    else:
        ShardCache(folder, 10**9, retry_sec=5)
        assert [path.name for path in folder.iterdir()] == [".room"]
    assert not list(folder.glob("*.part"))


def test_a_shard_of_another_content_is_refused_with_both_hashes(far, folder):
    corpus = far([5, 5])
    shard, other = corpus.shard(0), corpus.shard(1)
    cache = ShardCache(folder, 10**9, retry_sec=0)
    wrong = RemoteShard(shard.entry, other.url, shard.sidecar_url)
    with pytest.raises(ShardError, match=rf"with sha256 .*the manifest says .* with {shard.entry.sha256[:12]}"):
        cache.hold(wrong)
    assert not list(folder.glob("*.tar")) + list(folder.glob("*.part"))
    cache = ShardCache(folder, 10**9, retry_sec=0)  # without the sidecar that was right
    wrong = RemoteShard(shard.entry, shard.url, other.sidecar_url)
    with pytest.raises(ShardError, match=rf"sidecar of another shard: sha256 {other.entry.sha256[:12]}"):
        cache.hold(wrong)
    assert [path.name for path in folder.iterdir()] == [".room"]


def test_a_server_that_comes_back_within_the_patience_is_enough(far, folder, capsys):
    corpus = far([5])
    tar = corpus.directory / corpus.manifest.shards[0].name
    tar.rename(tar.with_suffix(".away"))
    threading.Timer(0.7, lambda: tar.with_suffix(".away").rename(tar)).start()
    held = ShardCache(folder, 10**9, retry_sec=20).hold(corpus.shard(0))
    assert sha256_file(held.tar) == corpus.manifest.shards[0].sha256
    assert "trying again for 20 s" in capsys.readouterr().err


def test_a_reader_with_a_small_cache_sees_the_same_images_and_stays_within_it(far, folder):
    corpus = far([6] * 9)
    limit = 4 * (max(entry.bytes for entry in corpus.manifest.shards) + 4000)
    settings = {"resolution": 32, "cache_bytes": 0, "block_shards": 2, "cache_dir": str(folder), "retry_sec": 5}
    config = ReaderConfig(url=f"file:{corpus.directory}", cache_max_bytes=limit, **settings)
    here = TrainingImages([(corpus.directory, corpus.manifest)], config, seed=0)
    there = TrainingImages([(folder / "nothing", corpus.manifest)], config, seed=0)
    for start in range(0, 108, 6):
        one, other = here.batch(range(start, start + 6)), there.batch(range(start, start + 6))
        assert one.keys == other.keys
        assert (one.images == other.images).all()
        assert size_of(folder) <= limit


def test_limits_and_folders_that_cannot_work_are_refused_at_the_start(far, folder, tmp_path):
    corpus = far([5] * 3)
    config = ReaderConfig(url="file:/x", cache_max_bytes=9000, cache_dir=str(folder), resolution=32, block_shards=2)
    with pytest.raises(ShardError, match=r"cache_max_bytes is 9000, but 3 shards with together up to \d+ bytes"):
        TrainingImages([(tmp_path / "nothing", corpus.manifest)], config, seed=0)
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"cache_dir .*file/cache: Not a directory; name a folder"):
        ShardCache(tmp_path / "file" / "cache", 10**9, retry_sec=0)
