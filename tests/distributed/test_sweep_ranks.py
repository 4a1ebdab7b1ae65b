"""A guidance sweep comes to the same figures and the same choice on any number of ranks, killed or not."""

import signal

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.sweep import SweepResults


def test_two_ranks_one_of_which_was_killed_before_come_to_the_same_choice_as_one(chain, ranks, tmp_path):
    sampled = chain.config("candidates")
    config = {key: sampled[key] for key in ("denoiser", "decoder", "classifier", "solver")} | {
        "guidances": [0.0, 2.0],
        "per_class": 4,
        "real": [str(chain["labelled"])],
        "encoder": {"kind": "timm", "name": "test_resnet"},
        "judge": str(chain.make("phi", tmp_path / "judge", seeds=[7])),
        "resolution": 32,
        "batch_size": 2,
    }
    one = ranks.run("sweep-guidance", tmp_path / "one", config, 1)
    two = tmp_path / "two"
    finished = lambda: list(two.glob("g-*/shards/*.json"))  # noqa: E731
    ranks.run("sweep-guidance", two, config, 2, code=None, signal_when=(signal.SIGKILL, finished))
    before = {path: path.stat().st_mtime_ns for path in finished()}
    assert before
    assert not (two / "manifest.json").exists()
    ranks.run("sweep-guidance", two, config, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished shards were made again"
    assert SweepResults.read(one / "sweep.json") == SweepResults.read(two / "sweep.json")
    assert (one / "sweep.json").read_bytes() == (two / "sweep.json").read_bytes()
    for name in ("", "g-0", "g-2"):
        assert read_manifest(one / name).identity == read_manifest(two / name).identity
