"""A solver sweep comes to the same figures and the same choice on any number of ranks, killed or not."""

import signal

import pytest

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.solver_sweep import SolverSweepResults, Speeds


@pytest.mark.slow
def test_two_ranks_that_were_killed_before_come_to_the_same_choice_as_one(chain, ranks, tmp_path):
    sampled = chain.config("candidates")
    config = {key: sampled[key] for key in ("denoiser", "decoder", "classifier")} | {
        "reference": {"steps": 8},
        "solvers": [{"kind": "unipc", "steps": 4}, {"steps": 2, "eta": 0.5}],
        "per_class": 6,
        "groups": 3,
        "real": [str(chain["labelled"])],
        "encoder": {"kind": "timm", "name": "test_resnet"},
        "resolution": 32,
        "batch_size": 2,
    }
    one = ranks.run("sweep-solvers", tmp_path / "one", config, 1)
    two = tmp_path / "two"
    finished = lambda: list(two.glob("*/shards/*.json"))  # noqa: E731
    ranks.run("sweep-solvers", two, config, 2, code=None, signal_when=(signal.SIGKILL, finished))
    before = {path: path.stat().st_mtime_ns for path in finished()}
    assert before
    assert not (two / "manifest.json").exists()
    ranks.run("sweep-solvers", two, config, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished shards were made again"
    for name in ("solvers.json", "solvers.svg"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    names = ["ddim-8", "unipc-4", "ddim-2-eta0.5"]
    assert [solver.name for solver in SolverSweepResults.read(two / "solvers.json").solvers] == names
    for name in ("", *names):
        assert read_manifest(one / name).identity == read_manifest(two / name).identity
    speeds = Speeds.read(two / "speed.json").solvers
    assert {name: speeds[name].batches for name in names} == dict.fromkeys(names, 6), "the killed run's are kept"
