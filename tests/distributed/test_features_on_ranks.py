"""Features, sums, choices and figures are the same bits on 1, 2 and 3 ranks; a full disk loses nothing."""

import json

import pytest

from hdtrain.formats.manifest import read_manifest

ENCODER = {"kind": "timm", "name": "test_resnet"}


def selection(chain, **changes):
    return {
        "real": [str(chain["labelled"])],
        "candidates": [str(chain["candidates"])],
        "encoder": ENCODER,
        "ratios": [0.3],
        "batch_size": 4,
        "resolution": 32,
        **changes,
    }


def evaluation(chain, **changes):
    phi = str(chain["phi"])
    return {
        "test": str(chain["test"]),
        "train": str(chain["labelled"]),
        "arms": {"real": {"classifier": phi}, "sampled": {"classifier": phi, "synthetic": str(chain["candidates"])}},
        "baseline": "real",
        "encoder": ENCODER,
        "judge": phi,
        "resolution": 32,
        "memorisation_px": 8,
        "batch_size": 5,
        "bootstrap_resamples": 100,
        **changes,
    }


def features_of(run):
    return {path.name: path.read_bytes() for path in (run / "features").iterdir()}


@pytest.fixture(scope="module")
def alone(chain, ranks, tmp_path_factory):
    """Both stages on one rank."""
    root = tmp_path_factory.mktemp("alone")
    ranks.run("select", root / "select", selection(chain))
    ranks.run("evaluate", root / "evaluate", evaluation(chain))
    return root


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_ranks_makes_the_same_features_choices_and_figures(chain, ranks, alone, tmp_path, count):
    for stage, config in (("select", selection(chain)), ("evaluate", evaluation(chain))):
        ours, theirs = ranks.run(stage, tmp_path / stage, config, count), alone / stage
        assert read_manifest(ours).identity == read_manifest(theirs).identity
        assert features_of(ours) == features_of(theirs)
    assert (tmp_path / "evaluate" / "results.json").read_bytes() == (alone / "evaluate" / "results.json").read_bytes()
    figures = json.loads((alone / "evaluate" / "results.json").read_text())["image_sets"]["sampled"]["metrics"]
    assert {"FD-timm-test_resnet-random", "KD-timm-test_resnet-random", "precision"} <= figures.keys()


def test_a_folder_that_two_runs_share_is_filled_once(chain, ranks, alone, tmp_path):
    shared = {"features": str(tmp_path / "features"), "batch_size": 4}
    ranks.run("select", tmp_path / "select", selection(chain, **shared), 2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    ranks.run("evaluate", tmp_path / "evaluate", evaluation(chain, **shared), 2)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert before.items() < after.items()
    assert read_manifest(tmp_path / "select").identity == read_manifest(alone / "select").identity
    assert not list(tmp_path.glob("*/features"))


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(chain, ranks, alone, tmp_path):
    config = selection(chain)
    ranks.run("select", tmp_path / "run", config, code=2, largest_file=2300)
    said = ranks.said()
    assert said.count("File too large") == 1
    assert "features/" in said
    assert "free some room, then run the same command" in said
    assert not list((tmp_path / "run").rglob("*.tmp"))
    ranks.run("select", tmp_path / "run", config)
    assert read_manifest(tmp_path / "run").identity == read_manifest(alone / "select").identity
