"""A fingerprint follows content, not place: that is what lets a recipe skip what is done."""

import shutil

import pytest

from hdtrain.config.load import validate
from hdtrain.config.training import TrainVaeConfig
from hdtrain.errors import ConfigError
from hdtrain.formats.fingerprint import fingerprint, listing_hash, read_parents
from hdtrain.formats.manifest import Manifest, publish

IMAGES = Manifest(kind="images", stage="shard", fingerprint="f", commit="c", classes=["a", "b"])


@pytest.fixture
def place(tmp_path):
    """A fingerprint of train-vae with its parent and weights in the folder named."""

    def fingerprint_in(name: str, **changes: object) -> str:
        tree = {
            "images": [tmp_path / name / "shards"],
            "duration": {"images": 10},
            "perceptual": {"kind": "squeezenet", "weights": tmp_path / name / "w.npz"},
            **changes,
        }
        config = validate(TrainVaeConfig, tree, "x")
        return fingerprint("train-vae", config, read_parents(config, "x"))

    publish(tmp_path / "one" / "shards", IMAGES)
    (tmp_path / "one" / "w.npz").write_bytes(b"weights")
    return fingerprint_in


def test_a_copy_elsewhere_has_the_same_fingerprint(place, tmp_path):
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert place("one") == place("two")


def test_config_parents_and_weights_each_change_it(place, tmp_path):
    found = {place("one"), place("one", seed=1)}
    (tmp_path / "one" / "w.npz").write_bytes(b"other weights")
    found.add(place("one"))
    publish(tmp_path / "one" / "shards", IMAGES.model_copy(update={"classes": ["b", "a"]}))
    found.add(place("one"))
    assert len(found) == 4


def test_a_parent_made_again_with_the_same_content_does_not_change_it(place, tmp_path):
    before = place("one")
    publish(tmp_path / "one" / "shards", IMAGES.model_copy(update={"commit": "later", "fingerprint": "g"}))
    assert place("one") == before


def test_all_missing_parents_and_files_are_named_at_once(place, tmp_path):
    with pytest.raises(ConfigError) as caught:
        place("nowhere")
    parent, weights = caught.value.problems
    assert parent.startswith("images.0: manifest ")
    assert "is not published; run `hdtrain shard CONFIG" in parent
    assert weights == f"perceptual.weights: no such file: {tmp_path / 'nowhere' / 'w.npz'}"


def test_raw_data_count_by_their_names_and_sizes_and_not_by_their_place(tmp_path):
    for name in ("here", "there/here"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(b"1234")
    moved = listing_hash(tmp_path / "there/here")
    assert moved == listing_hash(tmp_path / "here")
    (tmp_path / "there/here/b.png").write_bytes(b"5")
    assert moved != listing_hash(tmp_path / "there/here")
    (tmp_path / "there/here/b.png").unlink()
    assert moved == listing_hash(tmp_path / "there/here")


def test_what_cannot_change_the_result_is_no_part_of_it(place):
    reader = {"threads": 7, "cache_bytes": 0, "cache_dir": "/elsewhere", "retry_sec": 1.0, "url": "file:/x/{name}"}
    assert place("one", reader=reader) == place("one")
    assert place("one", reader={"block_shards": 3}) != place("one")
