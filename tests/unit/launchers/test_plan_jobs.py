"""What `hdtrain launch` finds before anything is in a queue: every mistake at once; what is done is left out."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_chain import READER, train_config

PROFILE = {
    "resources": {"gpu": {"nodes": 3, "gpus_per_node": 8, "time": 600}, "cpu": {"time": 600}},
    "min_free_gb": 0.001,
}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """A machine that has SLURM's commands and no controller would look for one in the DNS, for 20 s a test."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


@pytest.fixture
def plan(hdtrain, tmp_path, make_images):
    """`launch --dry-run` of stages with a profile; its words."""
    make_images("raw", 4)

    def run(recipe: dict, *args: str, code: int = 2, **profile: object) -> str:
        (tmp_path / "profile.yaml").write_text(yaml.safe_dump({**PROFILE, **profile}))
        (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "t", "out": "runs", "stages": recipe}))
        said = hdtrain("launch", "recipe.yaml", "--cluster", "profile.yaml", "--dry-run", *args, code=code)
        assert not (tmp_path / "runs/.launch").exists()
        return said.err or said.out

    return run


def shard(path: str = "raw") -> dict:
    return {"stage": "shard", "config": {"sources": [{"path": path}]}}


def vae(**changes: object) -> dict:
    config = {"images": ["@shards"], "reader": READER, "perceptual": {"kind": "none"}, **train_config(16, batch=24)}
    return {"stage": "train-vae", "config": {**config, **changes}}


def test_mistakes_of_all_stages_and_of_the_profile_come_at_once(plan, tmp_path):
    said = plan(
        {
            "shards": shard(),
            "vae": vae(**train_config(16, batch=16)),
            "other": vae(images=["@shards"], **train_config(16, batch=10)),
        },
        stages={"train-vea": "gpu"},
        min_free_gb=10**9,
    )
    assert "error: recipe.yaml: 4 problems" in said
    assert "stages.train-vea: no such stage or node; did you mean 'train-vae'?" in said
    assert (
        "vae: on 3 nodes: batch: 16 images cannot be split over 24 ranks; global batch sizes that can: 24, and any"
        in said
    )
    assert "other: on 3 nodes: batch: 10 images cannot be split" in said
    assert "  profile.yaml: stages.train-vea: no such" in said
    assert f"{tmp_path}/runs: " in said
    assert "GB free, and the cluster profile wants 1e+09 (min_free_gb)" in said


def test_a_mistake_of_the_profile_alone_is_told_under_its_file(plan):
    said = plan({"shards": shard()}, stages={"shrad": "cpu"})
    assert said.startswith("error: profile.yaml: 1 problem\n  stages.shrad: no such stage or node; did you mean 'shard")


@pytest.mark.parametrize(
    ("more", "other"),
    [({"optim": {"lr": -1}}, "optim.lr: "), (train_config(16, batch=16), "16 images cannot be split")],
)
def test_a_node_that_only_does_not_find_is_told_with_the_other_mistakes(plan, more, other):
    said = plan({"shards": shard(), "vae": vae(**more)}, "--only", "vaee", "--until", "vae", "--until", "shard")
    assert "3 problems" in said
    assert "--only: no node 'vaee'; did you mean 'vae'?" in said
    assert "--until: no node 'shard'; did you mean 'shards'?" in said
    assert f"  vae: {'on 3 nodes: batch: ' if 'split' in other else ''}{other}" in said


def test_a_config_a_parent_and_raw_data_that_are_wrong_come_at_once(plan):
    said = plan(
        {
            "shards": shard("no-such-folder"),
            "vae": vae(optim={"lr": -1}),
            "checked": {"stage": "verify", "config": {"images": "runs/elsewhere"}},
        }
    )
    assert "3 problems" in said
    assert "shards: sources.0.path: no such file or folder:" in said
    assert "vae: optim.lr: input should be greater than 0, got -1" in said
    assert "checked: images: " in said
    assert "is not published" in said


def test_a_weights_file_that_is_missing_is_found_although_its_parents_are_not_there_yet(plan):
    perceptual = {"kind": "lpips-vgg", "weights": "none.pth"}
    said = plan({"shards": shard(), "vae": vae(perceptual=perceptual)})
    assert "1 problem" in said
    assert "vae: perceptual.weights: no such file: " in said


def test_every_number_of_nodes_of_an_elastic_job_must_divide_the_batch(plan):
    resources = {"gpu": {"nodes": 1, "max_nodes": 3, "gpus_per_node": 8}, "cpu": {}}
    said = plan({"shards": shard(), "vae": vae(**train_config(16, batch=16))}, resources=resources)
    assert "vae: on 3 of 1 to 3 nodes: batch: 16 images cannot be split over 24 ranks; " in said
    assert "multiples of 48" in said
    said = plan({"shards": shard(), "vae": vae(**train_config(8, batch=8))}, resources=resources)
    assert "1 problem\n  vae: on 2, 3 of 1 to 3 nodes: batch: 8 images cannot be split over 16, 24 ranks; " in said
    said = plan({"shards": shard(), "vae": vae(**train_config(48, batch=48))}, code=0, resources=resources)
    assert "1-3 nodes × 8 ranks on 8 GPUs, 1:00 h" in said


def test_what_is_published_is_left_out_and_what_waits_for_nothing_else_begins_at_once(plan, hdtrain):
    stages = {"shards": shard(), "vae": vae()}
    said = plan(stages, code=0)
    rows = {line.split()[0]: line for line in said.partition("\n\n")[0].splitlines()}
    assert rows["vae"].endswith("shards")
    assert "--dependency='afterok:<id of shards>'" in said
    hdtrain("run", "recipe.yaml", "--only", "shards")
    said = plan(stages, code=0)
    rows = {line.split()[0]: line.split() for line in said.partition("\n\n")[0].splitlines()}
    assert rows["shards"] == ["shards", "shard", "done"]
    assert "dependency" not in said
    assert "── shards" not in said


def test_a_stage_of_one_process_asks_for_one_gpu_of_one_node_and_one_that_jobs_share_is_an_array(plan):
    resources = {"all": {"nodes": 2, "gpus_per_node": 8, "array": 4}}
    stages = {"shards": shard(), "seen": {"stage": "inspect", "config": {"images": "@shards"}}}
    rows = {line.split()[0]: line for line in plan(stages, code=0, resources=resources).splitlines()[:3]}
    assert "1 node × 1 rank on 1 GPU, 1:00 h" in rows["seen"]
    assert "4 × 2 nodes × 8 ranks on 8 GPUs, 1:00 h" in rows["shards"]
    assert "4 ×" not in rows["seen"]


def test_a_stage_of_one_process_asks_for_the_memory_of_its_gpu_and_not_of_the_node(plan):
    resources = {"all": {"gpus_per_node": 8, "mem_gb": 1600}}
    stages = {"shards": shard(), "seen": {"stage": "inspect", "config": {"images": "@shards"}}}
    said = plan(stages, code=0, resources=resources)
    alone, together = said.partition("── seen")[2], said.partition("── shards")[2].partition("── seen")[0]
    assert "--mem=204800MB" in alone
    assert "--mem=1638400MB" in together


def test_a_local_profile_has_one_node(plan):
    said = plan({"shards": shard()}, kind="local", resources={"here": {"nodes": 2}})
    assert "shards: resources: 2 nodes, and the local queue has one" in said


def test_words_that_name_nothing_are_told_with_the_nearest_that_does(hdtrain, tmp_path):
    assert "did you mean 'train-ldm'?" in hdtrain("launch", "train-ldn", "--cluster", "local", code=2).err
    assert "no profile 'loca', neither a file" in hdtrain("launch", "shard", "--cluster", "loca", code=2).err
    assert "launch: where? give --cluster" in hdtrain("launch", "shard", "--out", "x", code=2).err
    assert "launch: what? give a stage's name" in hdtrain("launch", "--cluster", "local", code=2).err
    assert "--out is missing" in hdtrain("launch", "shard", "--cluster", "local", code=2).err
