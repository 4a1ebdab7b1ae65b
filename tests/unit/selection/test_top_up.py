"""`top_up`: more of the short classes as the candidates' run would have gone on, and nothing else changes."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from select_helpers import config, refused, rows, samples, select, threshold

from hdtrain.formats.manifest import read_manifest
from hdtrain.selection import score

LIMIT = 18
"""Three times the six candidates of a class."""


@pytest.fixture(scope="module")
def short(chain, tmp_path_factory):
    """A config of which 3 of the 5 dots that are wanted pass."""
    tau = threshold(chain, tmp_path_factory.mktemp("ungated") / "run", "dots", 3)
    return config(chain, gates={"confidence": tau, "nearest_centroid": False}, top_up=3.0)


@pytest.fixture(scope="module")
def topped_up(short, tmp_path_factory):
    run = tmp_path_factory.mktemp("topped-up") / "run"
    return run, select(run, short)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), np.int16)


def test_a_short_class_is_sampled_until_enough_pass_or_its_limit_is_reached(topped_up):
    run, manifest = topped_up
    for name, counts in manifest.info["per_class"].items():
        own = [row for row in rows(run) if row["class"] == name]
        assert counts["candidates"] == len(own) == 6 + counts["topped_up"]
        assert counts["passed"] == sum(row["passes_gates"] for row in own) == len(own) - sum(counts["fell"].values())
        assert counts["topped_up"] == sum(row["topped_up"] for row in own)
        assert counts["passed"] >= 5 or counts["candidates"] == LIMIT
        assert counts["shortfall"] == {"0.5": max(0, 5 - counts["passed"])}
    assert manifest.info["per_class"]["dots"]["topped_up"] > 0


def test_the_images_are_those_that_a_longer_run_would_have_made(chain, topped_up, tmp_path):
    longer = samples(chain.make("candidates", tmp_path / "longer", per_class=LIMIT))
    made = samples(topped_up[0] / "topped-up")
    first = samples(chain["candidates"])
    assert made
    for key, (label, image, meta) in made.items():
        assert (label, meta) == (longer[key][0], longer[key][2])
        assert np.abs(pixels(image) - pixels(longer[key][1])).max() <= 1  # other images shared the batch
    for label in (0, 1):
        ours = {key for key, sample in (first | made).items() if sample[0] == label}
        assert ours == set(sorted(key for key, sample in longer.items() if sample[0] == label)[: len(ours)])


def test_what_was_made_is_a_published_data_set_that_says_where_it_comes_from(chain, topped_up):
    run, manifest = topped_up
    made = read_manifest(run / "topped-up", ("images",))
    counts = {name: counts["topped_up"] for name, counts in manifest.info["per_class"].items()}
    assert (made.split, made.classes, made.info["class_counts"]) == ("synthetic", ["dots", "stripes"], counts)
    assert made.num_samples == sum(counts.values())
    candidates = made.parents["candidates.0"]
    assert (run / "topped-up" / candidates.path).resolve() == chain["candidates"]
    assert candidates.identity == read_manifest(chain["candidates"]).identity
    assert manifest.info["topped_up"] == "topped-up"


def test_the_random_arm_is_the_same_with_and_without_topping_up(chain, short, topped_up, tmp_path):
    select(tmp_path / "run", {**short, "top_up": None})
    ours, theirs = (samples(run / "random-0.5") for run in (topped_up[0], tmp_path / "run"))
    assert ours == theirs
    assert ours.keys() <= samples(chain["candidates"]).keys()
    assert not (tmp_path / "run" / "topped-up").exists()


def test_selected_ones_are_the_nearest_of_all_that_pass_the_added_ones_too(topped_up):
    run, manifest = topped_up
    chosen = samples(run / "selective-0.5")
    for label, name in enumerate(manifest.classes):
        own = [row for row in rows(run) if row["class"] == name]
        ranked = sorted(own, key=lambda row: (not row["passes_gates"], row["target_distance"], row["key"]))
        assert {key for key, sample in chosen.items() if sample[0] == label} == {row["key"] for row in ranked[:5]}


def test_nothing_is_sampled_where_enough_pass(chain, tmp_path):
    manifest = select(tmp_path / "run", config(chain, top_up=3.0))
    assert manifest.info["topped_up"] is None
    assert not (tmp_path / "run" / "topped-up").exists()


def test_a_run_that_broke_off_between_two_rounds_goes_on_with_what_is_there(short, topped_up, tmp_path, monkeypatch):
    def broken(self, shards):
        raise KeyboardInterrupt

    monkeypatch.setattr(score.Scorer, "add_topped_up", broken)
    with pytest.raises(KeyboardInterrupt):
        select(tmp_path / "run", short)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "topped-up" / "shards").iterdir()}
    assert before
    manifest = select(tmp_path / "run", short)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert manifest.identity == topped_up[1].identity
    ours, theirs = (read_manifest(run / "topped-up") for run in (tmp_path / "run", topped_up[0]))
    assert ours.identity == theirs.identity


@pytest.fixture
def moved(chain, short, tmp_path):
    """The candidates with their models in another place, as a tree that was moved whole."""
    for name in ("candidates", "ldm", "decoder", "guide"):
        shutil.copytree(chain[name], tmp_path / "tree" / name)
    return tmp_path / "tree", {**short, "candidates": [str(tmp_path / "tree" / "candidates")]}


def test_a_tree_of_runs_that_was_moved_is_gone_on_with(moved, topped_up, tmp_path):
    tree, ours = moved
    config = (tree / "candidates" / "config.yaml").read_text()
    (tree / "candidates" / "config.yaml").write_text(config.replace("/chain", "/nowhere-chain"))
    assert select(tmp_path / "run", ours).identity == topped_up[1].identity


def test_models_and_configs_that_are_gone_or_not_the_same_any_more_are_refused(chain, moved, tmp_path, capsys):
    tree, ours = moved
    manifest = json.loads((tree / "guide" / "manifest.json").read_text())
    manifest["info"]["note"] = "trained again"
    (tree / "guide" / "manifest.json").write_text(json.dumps(manifest))
    said = refused(tmp_path / "run", ours, capsys)
    assert f"classifier {tree / 'guide'} has changed since" in said
    assert "leave top_up out" in said
    (tree / "ldm" / "manifest.json").unlink()
    assert f"manifest {tree / 'ldm' / 'manifest.json'} is not published" in refused(tmp_path / "run", ours, capsys)
    text = (tree / "candidates" / "config.yaml").read_text()
    shutil.copytree(chain["ldm"], tree / "ldm", dirs_exist_ok=True)
    shutil.copytree(chain["guide"], tree / "guide", dirs_exist_ok=True)
    (tree / "candidates" / "config.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    assert "it says 12 images of seed 5, and 12 of seed 0 were published" in refused(tmp_path / "run", ours, capsys)
    (tree / "candidates" / "config.yaml").unlink()
    assert "config.yaml is gone" in refused(tmp_path / "run", ours, capsys)
