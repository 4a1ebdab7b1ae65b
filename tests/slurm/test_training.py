"""Trainings in the queue: on two nodes as on two ranks here, and whatever stops one, it ends as if nothing had."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hdtrain.formats.checkpoint import complete
from hdtrain.formats.manifest import read_manifest

STEPS, BATCH = 40, 4
DURATION = {
    "images": STEPS * BATCH,
    "checkpoint_every_images": 4 * BATCH,
    "visualise_every_images": 1000 * BATCH,
    "log_every_steps": 1,
}
ON_TWO_NODES = {"train-ldm": "two"}


def results(run) -> dict[str, bytes]:
    """The published model and the averages written on the way."""
    paths = [*(run / "model").rglob("*"), *(run / "ema").glob("*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths) if path.is_file()}


def newest_step(run) -> int:
    return max((int(folder.name.removeprefix("step-")) for folder in complete(run / "checkpoints")), default=0)


@pytest.fixture(scope="module")
def config(chain):
    return chain.config("ldm", duration=DURATION)


@pytest.fixture(scope="module")
def whole(config, locally, tmp_path_factory):
    """The uninterrupted run on two ranks, without a queue."""
    return locally.run("train-ldm", tmp_path_factory.mktemp("whole") / "ldm", config, 2)


@pytest.fixture
def training(runs, config, slurm):
    """A training on two nodes that has begun: its job."""
    runs.profile(stages=ON_TWO_NODES)
    job = runs.stage("ldm", "train-ldm", config)
    runs.begun("ldm", steps=5)
    return job


def test_two_users_run_the_same_recipe_side_by_side_and_get_what_two_ranks_get_here(
    users, shared, chain, config, whole
):
    latents, vae, images = (shared(chain[name]) for name in ("latents", "vae", "unlabelled"))
    before = files_of(images.parent)
    stages = {
        "packed": {"stage": "reshard", "config": {"images": [str(images)], "samples_per_shard": 4}},
        "ldm": {"stage": "train-ldm", "config": {**config, "latents": str(latents), "vae": str(vae)}},
    }
    for runs in users:
        runs.profile(stages=ON_TWO_NODES, health_check=runs is users[0])
        runs.write("recipe.yaml", {"name": "mine", "out": "runs", "stages": stages})
    with ThreadPoolExecutor() as pool:
        submitted = list(pool.map(lambda runs: runs.launch("recipe.yaml"), users))
    times = []
    for runs, jobs in zip(users, submitted, strict=True):
        for name, (job,) in jobs.items():
            runs.ended(job)
            assert runs.slurm.job(job)["UserId"] == f"{runs.user.pw_name}({runs.user.pw_uid})"
            (begin,), (end,) = runs.attempts(f"runs/{name}", "begin"), runs.attempts(f"runs/{name}")
            assert end["code"] == 0
        assert results(runs.folder / "runs/ldm") == results(whole)
        assert runs.cli("status", "runs").count("published") == 2
        assert {path.lstat().st_uid for path in runs.folder.rglob("*")} == {runs.user.pw_uid}
        times.append((begin["time"], end["time"]))
    assert max(begin for begin, _ in times) < min(end for _, end in times), "one began after the other"
    assert files_of(images.parent) == before
    assert not [path for path in Path("/tmp").iterdir() if path.lstat().st_uid in {runs.user.pw_uid for runs in users}]


def files_of(folder) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_an_elastic_training_goes_on_with_the_node_that_is_left(runs, slurm, config):
    runs.profile(resources={"gpu": {"nodes": 1, "max_nodes": 2, "cpus_per_task": 1, "time": 10}})
    job = runs.stage("ldm", "train-ldm", config)
    runs.begun("ldm", steps=5)
    slurm.kill_node("node2")
    runs.ended(job)
    assert [(one["ranks"], one["nodes"]) for one in runs.attempts("ldm", "begin")] == [
        (2, ["node1", "node2"]), (1, ["node1"]),
    ]  # fmt: skip
    assert slurm.node_states()["node2"].startswith("down")
    assert read_manifest(runs.folder / "ldm").info["images_seen"] == STEPS * BATCH


def test_told_to_save_and_later_requeued_by_hand_it_ends_with_the_same_bytes(runs, slurm, training, whole):
    subprocess.run(["scancel", "--signal=USR1", training], check=True)  # what a time limit sends
    slurm.wait_until(lambda: slurm.restarts(training) == 1, "the job requeued itself")
    saved = runs.steps("ldm")
    assert newest_step(runs.folder / "ldm") == saved < STEPS
    runs.begun("ldm", steps=saved + 6)
    subprocess.run(["scontrol", "requeue", training], check=True)
    runs.ended(training)
    assert [one["code"] for one in runs.attempts("ldm")] == [3, 3, 0]  # SLURM leaves it KillWait to save
    assert slurm.restarts(training) == 2
    assert results(runs.folder / "ldm") == results(whole)


@pytest.mark.slow
def test_preempted_and_later_robbed_of_a_node_it_ends_with_the_same_bytes(runs, slurm, training, whole):
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    slurm.wait_until(lambda: slurm.restarts(training) == 1, "the job went out of the way")
    saved = runs.steps("ldm")
    assert newest_step(runs.folder / "ldm") == saved < STEPS
    runs.begun("ldm", steps=saved + 6)
    slurm.kill_node("node2")
    slurm.wait_until(lambda: slurm.job_state(training) != "RUNNING", "the job waits for two nodes")
    slurm.revive()
    runs.ended(training)
    assert results(runs.folder / "ldm") == results(whole)


@pytest.mark.slow
def test_cancelled_it_saves_and_does_not_come_back(runs, config, slurm):
    jobs = {by: runs.stage(f"{by}/ldm", "train-ldm", config) for by in ("hdtrain", "scancel")}
    for by in jobs:
        runs.begun(f"{by}/ldm", steps=5)
        if by == "hdtrain":
            runs.cli("cancel", "hdtrain/ldm")
        else:
            subprocess.run(["scancel", jobs[by]], check=True)
    slurm.wait_until(lambda: not slurm.squeue(), "both jobs are gone")
    for by, job in jobs.items():
        assert newest_step(runs.folder / by / "ldm") == runs.steps(f"{by}/ldm") < STEPS
        assert slurm.restarts(job) == 0
        assert "cancelled" in runs.cli("status", f"{by}/ldm")
