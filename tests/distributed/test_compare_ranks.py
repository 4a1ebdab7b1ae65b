"""Two sets of images have the same figures, to the bit, on any number of ranks, killed or not."""

import signal

import pytest

from hdtrain.formats.comparison import Comparison
from hdtrain.formats.manifest import read_manifest

FILES = ("results.json", "real/statistics.npz", "fake/statistics.npz")


def config(chain):
    """Published shards against raw images, which are packed first."""
    return {
        "real": str(chain["labelled"]),
        "fake": str(chain.root / "raw" / "test"),
        "encoder": {"kind": "timm", "name": "test_resnet"},
        "judge": str(chain["phi"]),
        "memorisation": True,
        "batch_size": 2,
    }


@pytest.fixture(scope="module")
def whole(chain, ranks, tmp_path_factory):
    """What one rank found."""
    return ranks.run("evaluate-images", tmp_path_factory.mktemp("compared") / "run", config(chain), 1)


def test_two_ranks_find_what_one_finds(chain, ranks, whole, tmp_path):
    metrics = Comparison.read(whole / "results.json").metrics
    assert (metrics["label_agreement"].n, metrics["label_agreement_real"].n) == (12, 20)
    run = ranks.run("evaluate-images", tmp_path / "run", config(chain), 2)
    for file in FILES:
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    for name in ("", "real", "fake", "packed/fake"):
        assert read_manifest(run / name).identity == read_manifest(whole / name).identity


def test_a_comparison_that_was_killed_goes_on_with_three_ranks_where_it_was(chain, ranks, whole, tmp_path):
    run = tmp_path / "killed"
    finished = lambda: list(run.glob("features/[0-9a-f]*.npy"))  # noqa: E731
    ranks.run("evaluate-images", run, config(chain), 2, code=None, signal_when=(signal.SIGKILL, finished))
    assert not (run / "manifest.json").exists()
    kept = [*finished(), *run.glob("packed/fake/shards/*"), *run.glob("parts/*/judge-*.npz")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert any(path.suffix == ".tar" for path in before)
    assert any(path.suffix == ".npy" for path in before)
    ranks.run("evaluate-images", run, config(chain), 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done was done again"
    for file in FILES:
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_mistake_is_told_once_by_all_ranks(chain, ranks, tmp_path):
    (tmp_path / "empty").mkdir()
    wrong = {**config(chain), "fake": str(tmp_path / "empty")}
    ranks.run("evaluate-images", tmp_path / "run", wrong, 2, code=None)
    assert 2 in ranks.codes
    assert f"fake: {tmp_path / 'empty'}: no images" in ranks.said()
