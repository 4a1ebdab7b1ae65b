"""Claims on units of work: one living worker a unit, and nothing that a dead one had is lost."""

import os
import subprocess
import sys
import threading

import pytest

from hdtrain.formats.claims import Claims, read_workers


@pytest.fixture
def claims(tmp_path):
    with Claims(tmp_path / "claims") as opened:
        yield opened


def another(claims: Claims, **changes) -> Claims:
    return Claims(claims.folder, **changes)


def pretend(worker: Claims, **changes) -> None:
    """Its file says that it is another process."""
    path = worker.folder / f"worker-{worker.token}.json"
    path.write_text(worker.state.model_copy(update=changes).model_dump_json())


def test_a_unit_has_one_owner_until_it_gives_it_back(claims):
    assert claims.take("a")
    assert claims.take("a"), "its own"
    with another(claims) as other:
        assert not other.take("a")
        assert other.take("b")
        claims.release("a")
        assert other.take("a")
        assert not claims.take("a")
        claims.release("a")  # not its own any more
        assert not claims.take("a")
    assert claims.take("a"), "who leaves gives everything back"


def test_of_many_who_want_a_unit_one_gets_it(claims):
    others = [another(claims) for _ in range(16)]
    for other in others:
        other.say()
    got: list[str] = []
    start = threading.Barrier(len(others))

    def want(other: Claims) -> None:
        start.wait()
        for unit in range(50):
            if other.take(f"unit-{unit}"):
                got.append(f"unit-{unit}")

    threads = [threading.Thread(target=want, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted({f"unit-{unit}" for unit in range(50)})


def test_the_unit_of_a_process_that_is_gone_from_this_host_is_free_at_once(claims):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = another(claims)
    dead.say()
    assert dead.take("a")
    pretend(dead, pid=gone.pid)
    assert claims.take("a")
    assert not dead.take("a") or claims.take("a")


def test_on_another_host_a_worker_is_dead_when_it_says_nothing_for_the_lease(claims, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("hdtrain.formats.claims.time.monotonic", lambda: now[0])
    far = another(claims)
    far.say()
    assert far.take("a")
    for beat in range(3):  # its clock may say what it likes: only that its word changes counts
        pretend(far, host="elsewhere", beat=beat, written=0.0)
        assert not claims.take("a")
        now[0] += 50
        assert not claims.take("a")
    now[0] += 61
    assert claims.take("a")


def test_a_claim_without_a_name_is_free_after_the_lease(claims, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("hdtrain.formats.claims.time.monotonic", lambda: now[0])
    (claims.folder / "a.claim").touch()  # a kill between making the file and writing it
    assert not claims.take("a")
    now[0] += 61
    assert claims.take("a")


def test_a_folder_that_was_cleared_up_is_no_error_on_leaving(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder) as claims:
        claims.take("a")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert not folder.exists()


def test_workers_tell_what_they_do(claims):
    claims.tell(unit="shard-7", unit_images=3, images=9, total_images=100)
    claims.say()
    (worker,) = read_workers(claims.folder)
    assert (worker.unit, worker.unit_images, worker.images, worker.total_images) == ("shard-7", 3, 9, 100)
    assert (worker.pid, worker.host) == (os.getpid(), os.uname().nodename)
    (claims.folder / "worker-x.json").write_text('{"half')
    assert len(list(read_workers(claims.folder))) == 1
