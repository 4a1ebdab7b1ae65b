"""Images of any generator from a folder: sharded as synthetic, selected, and given to a classifier as an arm."""

import numpy as np
import pytest
from PIL import Image
from select_helpers import config, refused, rows, samples, select
from tiny_chain import CLASSES, draw, run_here

from hdtrain.formats.manifest import read_manifest

PER_CLASS = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What another program leaves: `CLASS/NUMBER.png`."""
    root, rng = tmp_path_factory.mktemp("stylegan"), np.random.default_rng(7)
    for label, name in enumerate(CLASSES):
        (root / "generated" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            Image.fromarray(draw(label, rng)).save(root / "generated" / name / f"seed{i:04d}.png")
    return root / "generated"


def shard(folder, directory, **changes):
    assert run_here("shard", directory, {"sources": [{"path": str(folder)}], "samples_per_shard": 9, **changes}) == 0
    return directory


def test_from_a_folder_to_both_arms_and_to_a_classifier_that_counts_them_as_synthetic(chain, folder, tmp_path):
    generated = shard(folder, tmp_path / "generated", split="synthetic")
    changes = {"candidates": [str(generated)], "gates": {}, "ratios": [0.5, 1.0]}
    manifest = select(tmp_path / "selection", config(chain, **changes))
    pool = samples(generated)
    assert len(pool) == len(rows(tmp_path / "selection")) == 2 * PER_CLASS
    for name in ("selective-0.5", "random-0.5", "selective-1", "random-1"):
        arm = samples(tmp_path / "selection" / name)
        assert all(arm[key] == pool[key] for key in arm)
        count = round(10 * float(name.split("-")[1]))
        assert sorted(label for label, _, _ in arm.values()) == [0] * count + [1] * count
        assert read_manifest(tmp_path / "selection" / name).split == "synthetic"
    assert all(counts["topped_up"] == 0 for counts in manifest.info["per_class"].values())
    model = chain.config("phi")["model"]
    images = [str(chain["labelled"]), str(tmp_path / "selection" / "selective-1")]
    arm = chain.make("phi", tmp_path / "arm", model={**model, "images": images}, duration={"images": 4})
    info = read_manifest(arm).info
    assert (info["num_real"], info["num_synthetic"]) == (20, 20)


def test_they_cannot_be_topped_up_for_there_is_no_sampler(chain, folder, tmp_path, capsys):
    generated = shard(folder, tmp_path / "generated", split="synthetic")
    said = refused(tmp_path / "run", config(chain, candidates=[str(generated)], top_up=2.0), capsys)
    assert f"the images of {generated} were made by `hdtrain shard`, so there is no sampler that could go on" in said


def test_images_that_do_not_say_that_they_are_synthetic_are_no_candidates(chain, folder, tmp_path, capsys):
    generated = shard(folder, tmp_path / "generated")
    said = refused(tmp_path / "run", config(chain, candidates=[str(generated)]), capsys)
    assert "are of the split 'train', expected 'synthetic'" in said
    assert "`hdtrain shard` with split=synthetic" in said
    assert "of the split 'test'" in refused(tmp_path / "test", config(chain, candidates=[str(chain["test"])]), capsys)
