"""Processes that meet in a folder, for real: each is one of its own."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.world import World

PROGRAM = """
import shutil, sys, time
from pathlib import Path
from hdtrain.distributed.rendezvous import Rendezvous
from hdtrain.distributed.world import World
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
pause, action = float(sys.argv[4]), sys.argv[5]
time.sleep(pause)
try:
    with Rendezvous(folder / "meet", World(rank, size)) as meeting:
        (folder / f"first-{rank}").touch()
        meeting.barrier("first")
        seen = len(list(folder.glob("first-*")))
        if action == "fail":
            raise ValueError("the disk is on fire")
        if action == "late":
            meeting._until = lambda done, what, until=meeting._until: (time.sleep(0.5), until(done, what))
        meeting.barrier("second")
    if action == "remove":
        shutil.rmtree(folder / "meet")
    print(seen)
except BaseException as error:
    print(error)
"""


def start(folder: Path, rank: int, size: int, pause: float = 0.0, action: str = "go") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(rank), str(size), str(folder), str(pause), action]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(processes: list["subprocess.Popen[str]"]) -> list[str]:
    return [process.communicate(timeout=30)[0].strip() for process in processes]


def test_nobody_passes_before_everybody_has_come(tmp_path: Path) -> None:
    processes = [start(tmp_path, rank, 3, pause=0.4 * rank) for rank in range(3)]
    assert said(processes) == ["3", "3", "3"]


def test_what_an_earlier_attempt_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    assert said([start(tmp_path, rank, 2) for rank in range(2)]) == ["2", "2"]
    for path in tmp_path.glob("first-*"):
        path.unlink()
    early = start(tmp_path, 1, 2)  # finds the old session, and must not go through with it
    time.sleep(0.6)
    assert early.poll() is None
    assert not (tmp_path / "first-1").exists()
    assert said([start(tmp_path, 0, 2), early]) == ["2", "2"]


def test_the_failure_of_one_ends_the_waiting_of_all(tmp_path: Path) -> None:
    processes = [start(tmp_path, 0, 3), start(tmp_path, 1, 3, action="fail"), start(tmp_path, 2, 3)]
    assert said(processes) == ["the disk is on fire"] * 3


def test_rank_0_leaves_last_so_that_it_may_remove_the_folder(tmp_path: Path) -> None:
    processes = [start(tmp_path, 0, 3, action="remove"), start(tmp_path, 1, 3, action="late"), start(tmp_path, 2, 3)]
    assert said(processes) == ["3", "3", "3"]
    assert not (tmp_path / "meet").exists()


def test_a_single_process_waits_for_nobody_and_writes_nothing(tmp_path: Path) -> None:
    with Rendezvous(tmp_path / "meet", World()) as meeting:
        meeting.barrier("first")
    assert not (tmp_path / "meet").exists()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_half_written_file_counts_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "meet").mkdir()
    (tmp_path / "meet" / "session.json").write_text(text)
    assert said([start(tmp_path, 1, 2), start(tmp_path, 0, 2, pause=0.3)]) == ["2", "2"]
