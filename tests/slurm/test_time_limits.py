"""Real time limits: a training whose job is too short is requeued, goes on, and ends as if it had had all the time."""

import subprocess

import pytest

BATCH = 4


def duration(steps: int, checkpoint_every_steps: int) -> dict:
    return {
        "images": steps * BATCH,
        "checkpoint_every_images": checkpoint_every_steps * BATCH,
        "visualise_every_images": 10_000 * BATCH,
        "log_every_steps": 1,
    }


def weights(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "model").rglob("*")) if path.is_file()}


def limited(runs, minutes: int, **changes) -> None:
    runs.profile(resources={"gpu": {"cpus_per_task": 1, "time": minutes}}, **changes)


def test_the_stage_sees_its_end_coming_and_goes_on_in_the_next_attempt(runs, chain, locally, slurm):
    """Two minutes are less than what a stage keeps for its first save, so each attempt makes one step."""
    config = chain.config("ldm", duration=duration(2, 1000))
    limited(runs, 2, signal_sec=10)
    job = runs.stage("ldm", "train-ldm", config)
    runs.ended(job)
    first = (runs.folder / "ldm/logs/001.log").read_text()
    assert "stopped because the job ends at" in first
    assert "after step 1 of 2" in first
    assert slurm.restarts(job) == 1
    assert weights(runs.folder / "ldm") == weights(locally.run("train-ldm", runs.folder / "alone", config))


@pytest.mark.slow
def test_slurm_s_signal_before_the_limit_is_heard(runs, chain, locally, slurm):
    """SLURM looks every 30 s and sends the signal 30 to 60 s after the start. The next attempt has all the time."""
    config = chain.config("ldm", duration=duration(700, 50))
    limited(runs, 3, signal_sec=120)
    job = runs.stage("ldm", "train-ldm", config)
    slurm.wait_until(lambda: slurm.restarts(job) == 1, "the job requeued itself")
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)
    runs.ended(job, timeout_sec=500)
    assert "stopped by SIGUSR1" in (runs.folder / "ldm/logs/001.log").read_text()
    assert [one["code"] for one in runs.attempts("ldm")] == [3, 0]
    assert weights(runs.folder / "ldm") == weights(locally.run("train-ldm", runs.folder / "alone", config))
