"""Features outlive the selection that computed them: another ratio, gate or run embeds nothing again."""

import pytest
from select_helpers import config, rows, samples, select
from tiny_chain import run_here

from hdtrain.features.encoders import Encoder


@pytest.fixture
def no_embedding(monkeypatch):
    """From here on, an image that is embedded fails the test."""

    def forbid():
        monkeypatch.setattr(Encoder, "embed", lambda self, images: pytest.fail("embedded again"))

    return forbid


def test_another_ratio_or_gate_in_the_same_place_embeds_nothing(chain, tmp_path, no_embedding):
    fresh = select(tmp_path / "fresh", config(chain, ratios=[0.4], gates={"nearest_centroid": True}))
    select(tmp_path / "run", config(chain))
    no_embedding()
    (tmp_path / "run").rename(tmp_path / "run.previous-12345678")  # as the command line does
    again = select(tmp_path / "run", config(chain, ratios=[0.4], gates={"nearest_centroid": True}))
    assert again.identity == fresh.identity
    kept = {path.name for path in (tmp_path / "run.previous-12345678" / "features").iterdir()}
    assert {path.name for path in (tmp_path / "run" / "features").iterdir()} == kept


def test_a_folder_of_features_serves_several_runs(chain, tmp_path, no_embedding):
    own = select(tmp_path / "own", config(chain))
    shared = {"features": str(tmp_path / "features")}
    select(tmp_path / "first", config(chain, **shared))
    no_embedding()
    second = select(tmp_path / "second", config(chain, seed=3, **shared))
    assert not (tmp_path / "second" / "features").exists()
    assert samples(tmp_path / "second" / "selective-0.5") == samples(tmp_path / "own" / "selective-0.5")
    assert [row["target_distance"] for row in rows(tmp_path / "second")] == [
        row["target_distance"] for row in rows(tmp_path / "own")
    ]
    assert second.info == own.info


def test_a_features_file_that_was_cut_off_is_made_again(chain, tmp_path):
    whole = select(tmp_path / "whole", config(chain))
    for path in (tmp_path / "whole" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "whole").rename(tmp_path / "run.previous-12345678")
    assert select(tmp_path / "run", config(chain)).identity == whole.identity


def test_a_file_in_the_place_of_the_folder_is_refused(chain, tmp_path, capsys):
    (tmp_path / "features").write_text("a file where a folder should be")
    assert run_here("select", tmp_path / "run", config(chain, features=str(tmp_path / "features"))) == 2
    assert f"{tmp_path / 'features'} is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": [10.0]}, "the pool is too small (dots: 6 candidates, 100 wanted"),
        ({"ratios": [0.01]}, "ratio 0.01: of at most 10 real images a class that is none"),
        ({"candidates": ["candidates", "candidates"]}, "is named twice"),
        ({"real": ["candidates"], "candidates": ["candidates"]}, "is named twice"),
    ],
)
def test_what_the_manifests_tell_is_refused_before_anything_is_embedded(
    chain, tmp_path, no_embedding, capsys, changes, message
):
    no_embedding()
    placed = {
        key: [str(chain[name]) if isinstance(name, str) else name for name in value] for key, value in changes.items()
    }
    assert run_here("select", tmp_path / "run", {**config(chain), **placed}) == 2
    assert message in capsys.readouterr().err


def test_synthetic_images_are_no_real_ones(chain, tmp_path, no_embedding, capsys):
    no_embedding()
    more = chain.make("candidates", tmp_path / "more", per_class=1)
    assert run_here("select", tmp_path / "run", {**config(chain), "real": [str(more)]}) == 2
    assert "holds synthetic images; centroids are those of the real" in capsys.readouterr().err
