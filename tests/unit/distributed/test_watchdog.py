"""Processes that hang, for real: each rank is one of its own, and they wait for each other as ranks do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hdtrain.distributed.hang_report import ranks_text
from hdtrain.distributed.outcome import OUTCOME_VARIABLE
from hdtrain.distributed.watchdog import Watchdog
from hdtrain.distributed.world import World
from hdtrain.formats.heartbeats import Heartbeat, heartbeat_path, read_heartbeats

TIMEOUT_SEC = 2.0
PROGRAM = f"""
import os, re, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.watchdog import Watchdog
from hdtrain.distributed.world import World

folder, rank, size, action = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def read_shard():
    with open(folder / "pipe", "rb") as shard:
        return shard.read()

def load(step, watchdog):
    if step != 3:
        return
    match action:
        case "read": read_shard()
        case "read in a thread": ThreadPoolExecutor(1, "reader").submit(read_shard).result()
        case "stop":
            time.sleep({TIMEOUT_SEC} / 4)  # for its next heartbeat
            os.kill(os.getpid(), signal.SIGSTOP)
        case "die": os.kill(os.getpid(), signal.SIGKILL)
        case "hold the interpreter": re.fullmatch("(a+)+b", "a" * 60)
        case "work long":
            for _ in range(12):
                time.sleep({TIMEOUT_SEC} / 4)
                watchdog.beat(step, "drawing samples")

(folder / "checkpoints").mkdir(exist_ok=True)
with Rendezvous(folder / "meet", World(rank, size)) as meeting:
    with Watchdog(folder / "heartbeats", World(rank, size), timeout_sec={TIMEOUT_SEC}, title="train",
                  checkpoints=folder / "checkpoints") as watchdog:
        for step in range(1, 7):
            watchdog.beat(step, "waiting for data")
            load(step, watchdog)
            watchdog.beat(step, "computing")
            meeting.barrier(str(step))
            (folder / f"at-{{rank}}").write_text(str(step))
"""

Ranks = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Ranks]:
    """`start("go", "stop")`: two ranks, of which the second stops itself; none outlives the test."""
    os.mkfifo(tmp_path / "pipe")
    processes: list[subprocess.Popen[str]] = []

    def begin(*actions: str) -> list["subprocess.Popen[str]"]:
        variables = {**os.environ, OUTCOME_VARIABLE: str(tmp_path / "outcome.json")}
        for rank, action in enumerate(actions):
            command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(rank), str(len(actions)), action]
            processes.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
        return processes

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def message(folder: Path) -> str:
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["code"] == 1
    return str(outcome["message"])


def test_a_rank_that_blocks_in_reading_is_named_with_the_function_in_which_it_hangs(start: Ranks, tmp_path: Path):
    (tmp_path / "checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000002/meta.json").write_text("{}")
    ranks = start("go", "read", "go")
    _, said = ranks[0].communicate(timeout=30)
    assert ranks[0].returncode == 1
    text = message(tmp_path)
    assert re.match(r"train: no rank has come on for \d s \(engine.hang_timeout_sec is 2\); rank 1 lags behind\n", text)
    assert f"rank 1 (process {ranks[1].pid} on " in text
    assert "step 3, waiting for data, since " in text
    assert "sleeping): step 3" in text
    assert re.search(r"MainThread:\n.*<module>.*\n.*load \(<string>:\d+\)\n.*read_shard \(<string>:\d+\)\n", text)
    assert re.search(r"ranks 0, 2 wait at step 3, computing, in _until \(.*rendezvous\.py:\d+\)\n", text)
    assert text.endswith("the checkpoint step-00000002 stays; the same command goes on from step 2")
    assert "in _until" in said, "its own stacks go to the log"


def test_a_thread_that_blocks_in_reading_for_the_main_one_is_shown(start: Ranks, tmp_path: Path):
    (rank,) = start("read in a thread")
    assert rank.wait(30) == 1
    text = message(tmp_path)
    assert "rank 0 hangs\n" in text
    assert "Thread-" not in text, "a thread of the watchdog's own"
    assert re.search(r"reader_0:\n.*read_shard \(<string>:\d+\)\n", text)
    assert text.endswith("there is no checkpoint yet; the same command begins anew")


@pytest.mark.parametrize(("stopped", "judge"), [(1, 0), (0, 1)])
def test_a_stopped_process_is_named_by_the_lowest_rank_that_lives(start: Ranks, tmp_path: Path, stopped, judge):
    ranks = start(*("stop" if rank == stopped else "go" for rank in range(3)))
    assert ranks[judge].wait(30) == 1
    text = message(tmp_path)
    assert f"; rank {stopped} gives no sign of life\n" in text
    assert f"rank {stopped} (process {ranks[stopped].pid} on " in text
    assert re.search(
        r"stopped by a signal \(T\)\): last heard of at [\d:]{8}, then at step 3, waiting for data; its threads ", text
    )


def test_a_process_that_is_gone_is_named(start: Ranks, tmp_path: Path):
    ranks = start("go", "die")
    assert ranks[1].wait(30) == -signal.SIGKILL
    assert ranks[0].wait(30) == 1
    assert "; rank 1 gives no sign of life\n" in message(tmp_path)
    assert f"process {ranks[1].pid} on " in message(tmp_path)
    assert ", gone): last heard of at " in message(tmp_path)


def test_a_rank_that_lets_no_other_thread_run_shows_its_stack_all_the_same(start: Ranks, tmp_path: Path):
    ranks = start("go", "hold the interpreter")
    assert ranks[0].wait(30) == 1
    text = message(tmp_path)
    assert "; rank 1 gives no sign of life\n" in text
    assert "something in it holds the Python interpreter" in text
    assert re.search(r"in fullmatch\n(.*\n)*.* in load\n", text)
    assert "in _watch" not in text


def test_ranks_that_all_wait_for_the_same_are_told_so(start: Ranks, tmp_path: Path):
    ranks = start("read", "read", "read")
    assert ranks[0].wait(30) == 1
    text = message(tmp_path)
    assert "; ranks 0-2 stand at the same place: the network between them, or something that all of " in text
    assert text.count("read_shard (") == 3


def test_many_ranks_are_named_briefly():
    assert ranks_text([13]) == "rank 13"
    assert ranks_text([63, 0, 2, 3, 4, 40, 41]) == "ranks 0, 2-4, 40-41, 63"


def test_while_one_rank_still_makes_beats_the_others_wait(start: Ranks, tmp_path: Path):
    ranks = start("go", "work long", "go")
    assert [rank.wait(30) for rank in ranks] == [0, 0, 0]
    assert not (tmp_path / "outcome.json").exists()
    assert {heartbeat.left for heartbeat in read_heartbeats(tmp_path / "heartbeats")} == {True}


def test_ranks_that_were_suspended_and_woken_go_on(start: Ranks, tmp_path: Path):
    ranks = start("go", "work long")
    _until(lambda: (tmp_path / "at-1").exists() and (tmp_path / "at-1").read_text() == "2")
    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * TIMEOUT_SEC)
    for rank in ranks:
        rank.send_signal(signal.SIGCONT)
    assert [rank.wait(30) for rank in ranks] == [0, 0]


def test_heartbeats_of_an_earlier_larger_attempt_are_gone(start: Ranks, tmp_path: Path):
    assert [rank.wait(30) for rank in start("go", "go", "go")] == [0, 0, 0]
    (tmp_path / "meet/session.json").unlink()
    with Watchdog(tmp_path / "heartbeats", World(0, 1), timeout_sec=60, title="again") as watchdog:
        watchdog.beat(7, "computing")
        (heartbeat,) = read_heartbeats(tmp_path / "heartbeats")
        assert (heartbeat.rank, heartbeat.pid, heartbeat.left) == (0, os.getpid(), False)
    assert read_heartbeats(tmp_path / "heartbeats")[0].step == 7


def test_a_disk_that_takes_no_heartbeat_is_said_once_and_harms_nothing(tmp_path: Path, capfd):
    with Watchdog(tmp_path / "heartbeats", World(), timeout_sec=0.4, title="train") as watchdog:
        (tmp_path / "heartbeats").rename(tmp_path / "elsewhere")
        for step in range(20):
            watchdog.beat(step, "computing")
            time.sleep(0.05)
    assert watchdog.write_failures > 2
    assert capfd.readouterr().err.count("heartbeats cannot be written") == 1


def test_a_beat_costs_less_than_three_microseconds(tmp_path: Path):
    watchdog = Watchdog(tmp_path, World(), timeout_sec=60, title="train")
    seconds = []
    for _ in range(5):
        before = time.thread_time()
        for step in range(10_000):
            watchdog.beat(step, "computing")
        seconds.append((time.thread_time() - before) / 10_000)
    assert min(seconds) < 3e-6


def test_a_thousand_ranks_write_ten_files_a_second_and_a_short_time_out_is_still_kept(tmp_path: Path):
    intervals = {
        (size, timeout): Watchdog(tmp_path, World(0, size), timeout_sec=timeout, title="train").interval_sec
        for size, timeout in [(8, 1800.0), (1000, 1800.0), (1000, 80.0)]
    }
    assert intervals == {(8, 1800.0): 10, (1000, 1800.0): 100, (1000, 80.0): 10}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rank": "x"}', b"\xff\xfe"])
def test_a_broken_heartbeat_is_none(tmp_path: Path, content: bytes):
    heartbeat_path(tmp_path, 0).write_bytes(content)
    assert read_heartbeats(tmp_path) == []


def test_a_heartbeat_says_what_the_rank_does(tmp_path: Path):
    with Watchdog(tmp_path, World(3, 4), timeout_sec=0.8, title="train") as watchdog:
        for _ in range(3):
            watchdog.beat(5, "computing")
        _until(lambda: bool(read_heartbeats(tmp_path)) and read_heartbeats(tmp_path)[0].step == 5)
        (heartbeat,) = read_heartbeats(tmp_path)
    assert isinstance(heartbeat, Heartbeat)
    assert (heartbeat.rank, heartbeat.phase, heartbeat.beat, heartbeat.pid) == (3, "computing", 3, os.getpid())
    assert heartbeat.threads[0].name == "MainThread"
    assert "_until (" in heartbeat.threads[0].frames[-1]


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
