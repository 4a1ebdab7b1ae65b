"""Stages as arrays: several jobs of one process on one run, some of them killed, make what one job makes."""

import signal
from pathlib import Path

import pytest

from hdtrain.formats.manifest import read_manifest

ENCODER = {"kind": "timm", "name": "test_resnet"}


def configs(chain):
    phi, real, fake = str(chain["phi"]), str(chain["labelled"]), str(chain["candidates"])
    common = {"encoder": ENCODER, "resolution": 32, "batch_size": 2}
    arms = {"real": {"classifier": phi}, "sampled": {"classifier": phi, "synthetic": fake}}
    evaluation = {"test": str(chain["test"]), "train": real, "arms": arms, "baseline": "real", "judge": phi}
    return {
        "evaluate": {**common, **evaluation, "memorisation_px": 8, "bootstrap_resamples": 100},
        "select": {**common, "real": [real], "candidates": [fake], "ratios": [0.3]},
        "evaluate-images": {**common, "real": real, "fake": str(chain.root / "raw" / "test"), "memorisation": True},
    }


def content(run: Path) -> dict[str, bytes]:
    """All that a run leaves, but for records of how it went."""
    told = ("run.json", "config.yaml", "manifest.json", "logs", "parts")
    files = [path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in told]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.name != "manifest.json"}


STAGES = ["evaluate", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("select", "evaluate-images"))]


@pytest.fixture(scope="module")
def alone(chain, ranks, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")

    class Alone:
        """What one process makes, made when it is first asked for."""

        def __truediv__(self, stage: str) -> Path:
            if not (root / stage / "manifest.json").exists():
                ranks.run(stage, root / stage, configs(chain)[stage])
            return root / stage

    return Alone()


@pytest.mark.parametrize("stage", STAGES)
def test_three_jobs_that_begin_together_make_what_one_makes(chain, ranks, alone, tmp_path, stage):
    run = ranks.run(stage, tmp_path / "run", configs(chain)[stage], 3, apart=True)
    assert content(run) == content(alone / stage)
    assert read_manifest(run).identity == read_manifest(alone / stage).identity
    assert not (run / "claims").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_is_killed_beside_another_costs_nothing(chain, ranks, alone, tmp_path, stage):
    run = tmp_path / "run"
    begun = lambda: list(run.glob("features/*.npy"))  # noqa: E731
    ranks.run(stage, run, configs(chain)[stage], 2, apart=True, code=None, signal_when=(signal.SIGKILL, begun), to=0)
    assert ranks.codes == [-signal.SIGKILL, 0], ranks.said()
    assert content(run) == content(alone / stage)
    assert read_manifest(run).identity == read_manifest(alone / stage).identity
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_begins_after_publication_leaves_at_once(chain, ranks, alone, stage):
    before = {path: path.stat().st_mtime_ns for path in (alone / stage).rglob("*") if path.suffix in (".npy", ".json")}
    ranks.run(stage, alone / stage, configs(chain)[stage])
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if after[path] != before[path]} <= {"run.json"}
