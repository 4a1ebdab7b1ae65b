"""kill -9 of any rank or launcher at any moment, again and again: the run ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from hdtrain.formats.checkpoint import check_files, complete, read_meta
from hdtrain.formats.manifest import read_manifest
from launchers.processes import children

STEPS, BATCH = 30, 4
DURATION = {
    "images": STEPS * BATCH,
    "checkpoint_every_images": 2 * BATCH,
    "visualise_every_images": 1000 * BATCH,
    "log_every_steps": 1,
}


def results(run) -> dict[str, bytes]:
    """The published model and the averages written on the way."""
    paths = [*(run / "model").rglob("*"), *(run / "ema").glob("*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths) if path.is_file()}


def last_step(run) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return len(lines)


def check_checkpoints(run) -> None:
    """What looks complete is complete."""
    for folder in complete(run / "checkpoints"):
        check_files(folder, read_meta(folder))


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed") / "whole"
    return ranks.run("train-ldm", directory, chain.config("ldm", duration=DURATION), 2)


def test_two_kills_of_a_rank(chain, ranks, whole, tmp_path):
    rng, run, config = random.Random(0), tmp_path / "run", chain.config("ldm", duration=DURATION)
    for kill in range(2):
        begun = 4 + 10 * kill
        moment = time.monotonic() + 3600

        def now() -> bool:
            nonlocal moment
            if last_step(run) >= begun and moment > time.monotonic() + 100:  # noqa: B023
                moment = time.monotonic() + rng.uniform(0, 0.5)
            return time.monotonic() >= moment

        ranks.run("train-ldm", run, config, 2, code=None, signal_when=(signal.SIGKILL, now), to=rng.randrange(2))
        assert not (run / "manifest.json").exists()
        check_checkpoints(run)
    ranks.run("train-ldm", run, config, 2)
    assert "going on from step-000000" in ranks.said()
    assert results(run) == results(whole)
    assert read_manifest(run).identity == read_manifest(whole).identity


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(chain, ranks, whole, tmp_path):
    """All ranks are stopped first, so that it is certain what there was to kill."""
    run, config = tmp_path / "run", chain.config("ldm", duration=DURATION)

    def half_written() -> bool:
        folder = run / "checkpoints"
        if not (list(folder.glob(".step-*.tmp")) and complete(folder)):
            return False
        for pid in children(ranks.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        if list(folder.glob(".step-*.tmp")):
            return True
        for pid in children(ranks.pid):
            os.kill(pid, signal.SIGCONT)
        return False

    ranks.run("train-ldm", run, config, 2, code=-9, signal_when=(signal.SIGKILL, half_written))
    assert list((run / "checkpoints").glob(".step-*.tmp"))
    check_checkpoints(run)
    newest = complete(run / "checkpoints")[-1]
    ranks.run("train-ldm", run, config, 2)
    assert f"going on from {newest.name}" in ranks.said()
    assert not list((run / "checkpoints").glob(".*"))
    assert results(run) == results(whole)


class CommandLine:
    """`hdtrain train-ldm … --ranks 2` in a process of its own, in which launcher, torchrun and ranks can be killed."""

    def __init__(self, recipe, run):
        self.run = run
        command = [sys.executable, "-m", "hdtrain", "train-ldm", str(recipe), "--out", str(run), "--ranks", "2"]
        self.log = run.with_suffix(".log").open("ab")
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=variables, stdout=self.log, stderr=self.log)

    def processes(self) -> dict[str, int]:
        """Those that are there, by what they are."""
        found = {"launcher": self.process.pid}
        for agent in children(self.process.pid):
            found["torchrun"] = agent
            found |= {f"rank {i}": pid for i, pid in enumerate(sorted(children(agent)))}
        return found

    def wait_for(self, condition) -> bool:
        """False if the command ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def kill(self, name: str) -> None:
        """And wait until all the others are gone."""
        everyone = self.processes()
        os.kill(everyone[name], signal.SIGKILL)
        self.process.wait(60)
        self.log.close()
        end = time.monotonic() + 30
        while any(os.path.exists(f"/proc/{pid}") for pid in everyone.values()) and time.monotonic() < end:  # noqa: PTH110
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_four_kills_of_anything_in_a_run_of_the_command_line(chain, whole, tmp_path, seed):
    """Twenty over the five: the launcher, torchrun, a rank; while they begin, train, save."""
    rng, run, recipe = random.Random(seed), tmp_path / "run", tmp_path / "ldm.yaml"
    recipe.write_text(yaml.safe_dump(chain.config("ldm", duration=DURATION)))
    for kill in range(4):
        command, before = CommandLine(recipe, run), last_step(run)
        beginning = rng.random() < 0.25
        assert command.wait_for(lambda: len(command.processes()) == 4), "ended before it was killed"  # noqa: B023
        if not beginning:
            assert command.wait_for(lambda: 0 < last_step(run) != before), "ended before it was killed"  # noqa: B023
        time.sleep(rng.uniform(0, 8 if beginning else 2))
        name = rng.choice(["launcher", "torchrun", "rank 0", "rank 1"])
        print(f"kill {kill}: {name} {'at the beginning' if beginning else f'after step {last_step(run)}'}")
        command.kill(name)
        assert not (run / "manifest.json").exists()
        check_checkpoints(run)
    done = subprocess.run(
        [sys.executable, "-m", "hdtrain", "train-ldm", str(recipe), "--out", str(run), "--ranks", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "half done: it goes on" in done.stdout
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert results(run) == results(whole)
