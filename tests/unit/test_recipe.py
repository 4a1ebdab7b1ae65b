"""Recipes: checked whole before anything runs, skipped where done, continued where cut off."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hdtrain.errors import ConfigError
from hdtrain.formats.manifest import read_manifest
from hdtrain.recipe import load_recipe

SHARDS = {"stage": "shard", "config": {"sources": [{"path": "${data}"}], "samples_per_shard": 2}}
VERIFY = {"stage": "verify", "config": {"images": "@shards"}}
VAE = {
    "stage": "train-vae",
    "config": {"images": ["@shards"], "duration": {"images": "${images}"}, "perceptual": {"kind": "none"}},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write a recipe of the stages given; relative paths are then below tmp_path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "a/b", "sizes/8"):
        Path(folder).mkdir(parents=True)

    def write(stages: dict, **more: object) -> Path:
        tree = {"name": "test", "variables": {"data": "raw", "images": 8}, "stages": stages, **more}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return Path("recipe.yaml")

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


def test_nodes_come_after_their_parents_with_references_as_folders_below_out(recipe, tmp_path):
    found = load_recipe(recipe({"checked": VERIFY, "vae": VAE, "shards": SHARDS}, out="elsewhere", ranks={"vae": 2}))
    assert [node.name for node in found.nodes] == ["shards", "checked", "vae"]
    shards, checked, vae = found.nodes
    assert checked.config.images == shards.directory == tmp_path / "elsewhere" / "shards"
    assert (checked.parents, vae.ranks, checked.ranks) == (("shards",), 2, 1)
    assert load_recipe(Path("recipe.yaml"), out=Path("moved"), ranks=3).nodes[1].directory == tmp_path / "moved/checked"


def test_a_variable_keeps_its_type_and_the_command_line_has_the_last_word(recipe, tmp_path):
    path = recipe({"shards": SHARDS, "vae": VAE}, variables={"data": "raw/${no}", "images": 8})
    overrides = ["data=a/b", "images=16", "vae.optim.lr=1e-3", "shards.sources.0.name=x", "vae.images.0=@shards"]
    nodes = load_recipe(path, overrides).nodes
    assert nodes[0].config.sources[0].path == tmp_path / "a/b"
    assert nodes[0].config.sources[0].name == "x"
    assert (nodes[1].config.duration.images, nodes[1].config.optim.lr) == (16, 1e-3)


def test_a_variable_inside_a_longer_string_is_put_in_and_a_list_is_not(recipe, tmp_path):
    path = recipe({"shards": {"stage": "shard", "config": {"sources": [{"path": "${data}/${images}"}]}}})
    found = load_recipe(path, ["data=sizes"]).nodes[0].config.sources[0].path
    assert found == tmp_path / "sizes/8"
    assert problems(path, "images=[1, 2]") == [
        "stages.shards.config.sources.0.path: variable 'images' is a list or mapping inside a longer string"
    ]


def test_an_override_of_one_of_two_aliased_configs_changes_that_one_alone(recipe, tmp_path):
    path = recipe({"one": SHARDS})
    text = "name: t\nstages:\n  one: &a {stage: shard, config: {sources: [{path: raw}]}}\n  two: *a\n"
    path.write_text(text)
    one, two = load_recipe(path, ["one.seed=5"]).nodes
    assert (one.config.seed, two.config.seed) == (5, 0)


def test_null_variables_must_be_given(recipe):
    path = recipe({"shards": SHARDS, "vae": VAE}, variables={"data": "raw", "images": None})
    assert problems(path) == ["variables.images: must be given: add images=VALUE to the command"]
    assert load_recipe(path, ["images=4"]).nodes[1].config.duration.images == 4


def test_every_mistake_of_every_node_comes_at_once(recipe):
    stages = {
        "shards": {"stage": "shart", "config": {"sources": [{"path": "${dat}"}]}},
        "checked": {"stage": "verify", "config": {"images": "@shard"}},
        "vae": {**VAE, "config": {**VAE["config"], "sede": 1, "optim": {"lr": -1}}},
        "ldm": {
            "stage": "train-ldm",
            "config": {"latents": "@vae", "vae": "runs/other/vae", "duration": {"images": 1}},
        },
    }
    found = problems(recipe(stages, ranks={"vea": 2}), "imags=3", "vea.seed=1", "checked.images.x=1")
    expected = [
        "imags=…: no such variable; did you mean 'images'?; a config key is NODE.KEY=…",
        "vea.seed=…: no node 'vea'; did you mean 'vae'?",
        "stages.shards.config.sources.0.path: unknown variable '${dat}'; did you mean 'data'?",
        "ranks.vea: no such node; did you mean 'vae'?",
        "shards: no stage 'shart'; did you mean 'shard'?",
        "checked: images: no node '@shard'; did you mean '@shards'?",
        "vae: sede: unknown key; did you mean 'seed'?",
        "vae: optim.lr: input should be greater than 0, got -1",
        "ldm: latents: '@vae' (train-vae) publishes autoencoder, expected latents",
    ]
    assert not set(expected) - set(found)
    assert any(p.startswith("checked: images.x: 'images' is a value") for p in found)
    assert any(p.startswith("ldm: vae: manifest ") and "is not published" in p for p in found)
    assert len(found) == len(expected) + 2


def test_a_cycle_is_named(recipe):
    encode = {"stage": "encode", "config": {"images": ["@shards"], "vae": "@vae"}}
    vae = {**VAE, "config": {**VAE["config"], "images": ["@latents"]}}
    found = problems(recipe({"shards": SHARDS, "vae": vae, "latents": encode}))
    assert "vae: images.0: '@latents' (encode) publishes latents, expected images" in found
    cycle = next(p for p in found if p.startswith("the stages wait for each other: "))
    assert {"vae", "latents"} == set(cycle.rpartition(": ")[2].split(" → "))


def test_data_sets_below_a_select_node_are_images_and_below_others_are_refused(recipe, tmp_path):
    select = {
        "stage": "select",
        "config": {
            "real": ["@shards"],
            "candidates": ["@shards"],
            "encoder": {"kind": "squeezenet", "weights": "w.npz"},
        },
    }
    stages = {"shards": SHARDS, "chosen": select, "good": {"stage": "verify", "config": {"images": "@chosen/random-1"}}}
    assert problems(recipe(stages)) == [f"chosen: encoder.weights: no such file: {tmp_path / 'w.npz'}"]
    Path("w.npz").write_bytes(b"")
    assert load_recipe(recipe(stages)).nodes[-1].config.images == tmp_path / "runs/test/chosen/random-1"
    stages |= {"bare": {"stage": "verify", "config": {"images": "@chosen"}}}
    stages |= {"below": {"stage": "verify", "config": {"images": "@shards/x"}}}
    bare, below = problems(recipe(stages))
    assert bare.endswith(
        "publishes selection, expected images; name one of its data sets, such as '@chosen/selective-0.5'"
    )
    assert below == "below: images: '@shards/x': node 'shards' (shard) has no such data set for this key"


def test_splits_are_data_sets_below_their_node(recipe):
    config = {**SHARDS["config"], "splits": {"shares": {"train": 0.8, "test": 0.2}, "by": "sample"}}
    nodes = {"cut": {"stage": "shard", "config": config}}
    check = {"stage": "verify", "config": {"images": "@cut/train", "disjoint_from": ["@cut/test"]}}
    assert load_recipe(recipe({**nodes, "check": check})).nodes[-1].config.images.name == "train"
    wrong = {name: {"stage": "verify", "config": {"images": f"@{name}"}} for name in ("cut", "cut/val")}
    bare, below = problems(recipe({**nodes, "bare": wrong["cut"], "below": wrong["cut/val"]}))
    assert bare.endswith(
        "'@cut' (shard) publishes 2 data sets, expected images; name one of its data sets, such as '@cut/train'"
    )
    assert below.endswith("node 'cut' (shard) has no such data set for this key; it has train, test")


def test_a_recipe_runs_skips_what_is_done_and_redoes_what_a_change_touches(recipe, hdtrain, make_images, tmp_path):
    make_images("raw", {"a": 3, "b": 2})
    path = recipe({"checked": VERIFY, "shards": SHARDS})
    hdtrain("run", path, "--dry-run")
    assert not (tmp_path / "runs").exists()
    first = hdtrain("run", path, "--only", "shards").out
    assert "checked" not in first
    second = hdtrain("run", path).out
    assert "── shards (shard): skip, done" in second
    assert [line.split()[:3] for line in second.splitlines()[-2:]] == [
        ["shards", "shard", "skipped"],
        ["checked", "verify", "done"],
    ]
    old = read_manifest(tmp_path / "runs/test/shards").fingerprint[:8]
    planned = hdtrain("run", path, "--dry-run", "shards.samples_per_shard=3").out
    assert f"changed: the old run moves to shards.previous-{old}" in planned
    hdtrain("run", path, "shards.samples_per_shard=3")
    names = {p.name.partition(".previous-")[0] for p in (tmp_path / "runs/test").glob("*.previous-*")}
    assert names == {"shards", "checked"}
    back = hdtrain("run", path, "--only", "shards").out
    assert f"shards.previous-{old} comes back" in back
    assert read_manifest(tmp_path / "runs/test/shards").fingerprint[:8] == old
    assert back.splitlines()[-1].split()[:3] == ["shards", "shard", "skipped"]


def test_a_mistake_found_by_the_stage_does_not_cost_the_published_run(recipe, hdtrain, make_images, tmp_path):
    make_images("raw", {"a": 3, "b": 2})
    path = recipe({"shards": SHARDS})
    hdtrain("run", path)
    tar = next((tmp_path / "runs/test/shards/shards").glob("*.tar"))
    inode = tar.stat().st_ino
    make_images("empty", {"a": 1, "b": 0})
    assert "empty class 'b'" in hdtrain("run", path, "data=empty", code=2).out
    hdtrain("run", path)
    assert tar.stat().st_ino == inode


def test_until_a_node_runs_what_it_needs_and_no_more(recipe, hdtrain, make_images):
    make_images("raw", {"a": 3, "b": 2})
    path = recipe({"checked": VERIFY, "again": VERIFY, "shards": SHARDS})
    said = hdtrain("run", path, "--until", "checked").out
    assert [line.split()[:3] for line in said.splitlines()[-2:]] == [
        ["shards", "shard", "done"],
        ["checked", "verify", "done"],
    ]
    assert "--until: no node 'cheked'; did you mean 'checked'?" in hdtrain("run", path, "--until", "cheked", code=2).err


def test_only_a_node_whose_parent_is_missing_says_so(recipe, hdtrain):
    path = recipe({"checked": VERIFY, "shards": SHARDS})
    error = hdtrain("run", path, "--only", "checked", code=2).err
    assert "checked: 1 problem" in error
    assert "shards/manifest.json is not published; run `hdtrain shard" in error
    error = hdtrain("run", path, "--only", "cheked", code=2).err
    assert "--only: no node 'cheked'; did you mean 'checked'?" in error


def test_raw_data_that_is_not_there_is_named_before_anything_runs(recipe, hdtrain, tmp_path):
    error = hdtrain("run", recipe({"shards": SHARDS}), "--dry-run", "data=nowhere", code=2).err
    assert f"shards: sources.0.path: no such file or folder: {tmp_path / 'nowhere'}" in error
    assert not (tmp_path / "runs").exists()


def test_a_failing_stage_stops_the_recipe_and_names_what_was_not_run(recipe, hdtrain, tmp_path):
    done = hdtrain("run", recipe({"checked": VERIFY, "shards": SHARDS}), code=2)
    assert f"shards (shard) failed (2); its log: {tmp_path}/runs/test/shards/logs/001.log" in done.err
    assert "not run: checked" in done.err
    assert "error: " in done.out
    assert "Traceback" not in done.out + done.err


def test_killed_at_any_moment_the_same_command_finishes_with_the_same_result(recipe, cli, make_images, tmp_path):
    make_images("raw", {"a": 80, "b": 80}, size_px=8)
    path = recipe({"shards": SHARDS})
    shards = tmp_path / "runs/test/shards"
    process = subprocess.Popen([sys.executable, "-m", "hdtrain", "run", path], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(shards.glob("shards/*.json")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes_naming(shards))
    assert not (shards / "manifest.json").exists(), "the stage was over before it could be killed"
    assert "half done: it goes on" in cli("run", path).stdout
    cli("run", path, "--out", "whole")
    assert read_manifest(shards).identity == read_manifest(tmp_path / "whole/shards").identity


def wait_for(condition, timeout_sec: float = 60) -> None:
    end = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def processes_naming(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(path) in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_raw_data_that_was_removed_after_packing_is_not_asked_for_again(recipe, hdtrain, make_images, tmp_path):
    make_images("raw", {"a": 3, "b": 2})
    path = recipe({"checked": VERIFY, "shards": SHARDS})
    hdtrain("run", path)
    shutil.rmtree(tmp_path / "raw")
    assert hdtrain("run", path).out.count("skip, done") == 2
    error = hdtrain("run", path, "shards.seed=5", code=2)
    assert "sources.0.path: no such file or folder" in error.out + error.err
    assert (tmp_path / "runs/test/shards/manifest.json").exists()
