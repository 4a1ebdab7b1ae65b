"""Recipes, arrays and the record of a submission, in the queue."""

import shutil
import subprocess
import time

import pytest
import yaml
from tiny_chain import write_raw

from hdtrain.formats.manifest import read_manifest

RECIPE = {
    "name": "tiny",
    "out": "runs",
    "stages": {
        "shards": {
            "stage": "shard",
            "config": {"sources": [{"path": "raw/unlabelled"}], "split": "unlabelled", "samples_per_shard": 6},
        },
        "packed": {"stage": "reshard", "config": {"images": ["@shards"], "samples_per_shard": 4}},
        "checked": {"stage": "verify", "config": {"images": "@packed"}},
    },
}


@pytest.fixture
def recipe(runs):
    write_raw(runs.folder / "raw")
    return runs.write("recipe.yaml", RECIPE)


def test_a_recipe_runs_in_the_order_of_its_graph(runs, recipe, slurm):
    ids = runs.launch("recipe.yaml")
    decoy = runs.folder / "launchers/__init__.py"  # as in a checkout from which jobs are submitted
    decoy.parent.mkdir()
    decoy.write_text("raise RuntimeError('not the submitted code')\n")
    for (job,) in ids.values():
        runs.ended(job)
    shutil.rmtree(decoy.parent)
    times = {name: slurm.job(job) for name, (job,) in ids.items()}
    assert times["shards"]["EndTime"] <= times["packed"]["StartTime"]
    assert times["packed"]["EndTime"] <= times["checked"]["StartTime"]
    assert read_manifest(runs.folder / "runs/checked").kind == "verification"
    again = runs.cli("launch", "recipe.yaml", "--cluster", "cluster.yaml", "--only", "shards", "--only", "packed")
    assert "nothing to submit" in again


def test_a_stage_that_fails_stops_what_depends_on_it_and_status_says_why(runs, recipe, slurm):
    broken = sorted((runs.folder / "raw/unlabelled").iterdir())[:10]
    kept = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"no image")
    ids = runs.launch("recipe.yaml")
    runs.ended(ids["shards"][0], "FAILED")
    slurm.wait_until(lambda: not slurm.squeue(), "the others leave the queue")
    said = runs.cli("status", "runs")
    assert "10 of 20" in said
    assert not (runs.folder / "runs/packed").exists()

    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(content)
    runs.cli("retry", "runs")
    slurm.wait_until(lambda: not slurm.squeue(), "the second submission leaves the queue")
    assert read_manifest(runs.folder / "runs/checked").kind == "verification"


def test_a_failed_element_of_a_sweep_is_submitted_again_alone(runs, recipe, slurm):
    broken = min((runs.folder / "raw/unlabelled").iterdir())
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    runs.write("config.yaml", RECIPE["stages"]["shards"]["config"])
    runs.write("sweep.yaml", {"keys": {"max_failed_share": [0.0, 0.5]}})
    ids = runs.launch("shard", "config.yaml", "--out", "sweep", "--sweep", "sweep.yaml")
    (strict, first), (lenient, second) = ((name, ids[name][0]) for name in sorted(ids))
    runs.ended(first, "FAILED")
    runs.ended(second)
    made = (runs.folder / "sweep" / lenient / "manifest.json").stat().st_mtime_ns

    broken.write_bytes(content)
    again = runs.submitted(runs.cli("retry", "sweep"))
    assert again.keys() == {strict}
    runs.ended(again[strict][0])
    assert (runs.folder / "sweep" / strict / "manifest.json").exists()
    assert (runs.folder / "sweep" / lenient / "manifest.json").stat().st_mtime_ns == made


@pytest.mark.slow
def test_a_node_that_fails_the_health_check_is_left_out_of_the_next_attempt(runs, recipe, slurm):
    scratch = slurm.home / "scratch"
    resources = {"cpu": {"tasks_per_node": 2, "cpus_per_task": 1, "time": 10}}
    runs.profile(resources=resources, health_check=True, scratch=str(scratch))
    slurm.fill_disk("node1", scratch)
    job = runs.stage("shards", "shard", RECIPE["stages"]["shards"]["config"])
    runs.ended(job)
    first, second = runs.attempts("shards")
    assert first["message"] == "node node1 failed its health check"
    assert second["code"] == 0
    assert slurm.job(job)["NodeList"] == "node2"


@pytest.mark.slow
def test_a_job_that_is_told_to_end_during_its_health_check_is_requeued(runs, recipe, slurm):
    runs.profile(resources={"cpu": {"tasks_per_node": 2, "cpus_per_task": 1, "time": 10}}, health_check=True)
    job = runs.stage("shards", "shard", RECIPE["stages"]["shards"]["config"])
    slurm.wait_until(lambda: runs.attempts("shards", "begin"), "the job has begun")
    time.sleep(0.5)  # the check imports torch
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    runs.ended(job)
    assert [one["code"] for one in runs.attempts("shards")] == [3, 0]


@pytest.mark.slow
def test_a_job_runs_what_was_submitted_and_not_what_was_edited_since(runs, recipe, slurm):
    runs.profile(resources={"cpu": {"cpus_per_task": 1, "options": {"hold": True}}})
    config = RECIPE["stages"]["shards"]["config"]
    job = runs.stage("shards", "shard", config)
    assert job in runs.cli("status", "shards")
    runs.write("shards-config.yaml", {**config, "samples_per_shard": 10})
    subprocess.run(["scontrol", "release", job], check=True)
    runs.ended(job)
    assert yaml.safe_load((runs.folder / "shards/config.yaml").read_text())["samples_per_shard"] == 6


def test_three_elements_of_an_array_pack_each_image_once_and_make_the_bytes_of_one_process(runs, recipe, locally):
    config = {**RECIPE["stages"]["shards"]["config"], "samples_per_shard": 2}
    runs.profile(resources={"cpu": {"cpus_per_task": 1, "time": 10, "array": 3}})
    runs.write("shard.yaml", config)
    ids = runs.launch("shard", "shard.yaml", "--out", "images")["images"]
    assert len(ids) == 3
    for job in ids:
        runs.ended(job)
    config["sources"] = [{"path": str(runs.folder / "raw/unlabelled")}]
    assert shards(runs.folder / "images") == shards(locally.run("shard", runs.folder / "alone", config))
    assert sum(shard.samples for shard in read_manifest(runs.folder / "images").shards) == 20


@pytest.mark.slow
def test_three_elements_of_an_array_draw_each_image_once_and_the_bytes_of_one_process(runs, chain, locally, tmp_path):
    config = {
        "denoiser": str(chain["ldm"]),
        "decoder": str(chain["vae"]),
        "per_class": 24,
        "solver": {"steps": 4},
        "samples_per_shard": 2,
        "batch_size": 2,
    }
    resources = {"gpu": {"cpus_per_task": 1, "time": 10, "array": 3}}
    runs.profile(resources=resources)
    runs.write("sample.yaml", config)
    ids = runs.launch("sample", "sample.yaml", "--out", "images")["images"]
    assert len(ids) == 3
    for job in ids:
        runs.ended(job)
    alone = locally.run("sample", tmp_path / "alone", config)
    assert shards(runs.folder / "images") == shards(alone)
    assert sum(shard.samples for shard in read_manifest(runs.folder / "images").shards) == 24


def shards(run) -> dict[str, bytes]:
    paths = [path for path in run.rglob("*.tar") if ".launch" not in path.parts]
    assert paths
    return {path.name: path.read_bytes() for path in sorted(paths)}
