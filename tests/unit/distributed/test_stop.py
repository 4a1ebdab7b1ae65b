"""When a run stops before its end, and what it says."""

import os
import signal
import time

import pytest
from tiny_chain import signals_kept

from hdtrain.distributed.stop import END_VARIABLES, NUM_REASONS, Deadline, StopFlag, stop_reason
from hdtrain.errors import ConfigError

HDTRAIN, SLURM = END_VARIABLES


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    for name in END_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def summed(*votes):
    return [sum(column) for column in zip(*votes, strict=True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_one_rank_is_a_reason_for_all_and_named(number):
    flag = StopFlag()
    assert not flag.is_set
    with signals_kept():
        flag.install()
        os.kill(os.getpid(), number)
        assert flag.is_set
        flag.install()  # the next seed's training
    assert flag.is_set
    votes = summed(StopFlag().votes(), flag.votes(), StopFlag().votes())
    assert len(votes) == NUM_REASONS
    assert stop_reason(votes, Deadline()) == f"by {number.name}"


def test_a_second_interrupt_stops_at_once():
    flag = StopFlag()
    with signals_kept():
        flag.install()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_without_a_reason_nobody_stops():
    assert stop_reason(summed(StopFlag().votes(), StopFlag().votes()), Deadline()) == ""
    assert not Deadline.from_environment().reached(save_sec=1e6, step_sec=1e6)


def test_the_end_of_the_job_is_a_reason_and_its_time_is_said(monkeypatch):
    end = int(time.time()) + 20
    monkeypatch.setenv(SLURM, str(end))
    deadline = Deadline.from_environment()
    votes = summed(StopFlag().votes(), StopFlag().votes(deadline.reached(1, 1)))
    today = time.localtime()[:3] == time.localtime(end)[:3]
    when = time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", time.localtime(end))
    assert stop_reason(votes, deadline) == f"because the job ends at {when}"


def test_a_signal_is_named_where_the_job_ends_too():
    flag = StopFlag()
    flag.number = signal.SIGUSR1
    assert stop_reason(flag.votes(deadline_reached=True), Deadline(time.time())) == "by SIGUSR1"


@pytest.mark.parametrize(
    ("left_sec", "save_sec", "step_sec", "reached"),
    [
        (3600, 0, 0, False),
        (125, 0, 0, False),
        (115, 0, 0, True),  # before the first save: 2 × 45 s + 30 s
        (115, 1, 1, False),
        (34, 1, 1, True),  # 2 × 1 s + 3 × 1 s + 30 s = 35 s
        (600, 300, 1, True),
        (600, 280, 1, False),
        (600, 200, 60, True),
    ],
)
def test_there_must_be_time_for_two_saves_and_three_steps(left_sec, save_sec, step_sec, reached):
    assert Deadline(time.time() + left_sec).reached(save_sec, step_sec) is reached


def test_ours_counts_before_that_of_slurm(monkeypatch):
    monkeypatch.setenv(SLURM, str(int(time.time()) + 100))
    monkeypatch.setenv(HDTRAIN, str(int(time.time()) + 5000))
    assert Deadline.from_environment().end_sec == int(os.environ[HDTRAIN])


@pytest.mark.parametrize("text", ["2030-01-01T00:00", "-5", "soon", "1e10"])
def test_a_malformed_end_is_one_clear_mistake(monkeypatch, text):
    monkeypatch.setenv(HDTRAIN, text)
    with pytest.raises(ConfigError, match=f"environment: 1 problem\n  {HDTRAIN}: expected .* unix seconds.* '{text}'"):
        Deadline.from_environment()


def test_an_end_that_has_passed_is_a_mistake_too(monkeypatch):
    monkeypatch.setenv(SLURM, "1000000000")
    with pytest.raises(ConfigError, match=f"{SLURM}: the job's end, 1000000000 .2001-09-.* has passed"):
        Deadline.from_environment()
