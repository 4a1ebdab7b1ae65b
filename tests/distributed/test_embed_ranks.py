"""Embeddings from two real processes, one of them killed: the same bytes as from one."""

import signal

import pytest

from hdtrain.formats.manifest import read_manifest

ENCODER = {"kind": "timm", "name": "test_resnet"}


def config(chain):
    return {"images": [str(chain["unlabelled"]), str(chain["labelled"])], "encoder": ENCODER, "batch_size": 2}


def parts(run):
    return {path.name: path.read_bytes() for path in (run / "shards").iterdir()}


@pytest.fixture(scope="module")
def alone(chain, ranks, tmp_path_factory):
    return ranks.run("embed", tmp_path_factory.mktemp("alone") / "run", config(chain))


def test_two_processes_make_what_one_makes(chain, ranks, alone, tmp_path):
    run = ranks.run("embed", tmp_path / "run", config(chain), 2)
    assert parts(run) == parts(alone)
    assert (run / "index.parquet").read_bytes() == (alone / "index.parquet").read_bytes()
    assert read_manifest(run).identity == read_manifest(alone).identity
    assert not (run / "claims").exists()


def test_killed_in_the_middle_it_keeps_what_is_whole_and_goes_on(chain, ranks, alone, tmp_path):
    run = tmp_path / "run"

    def begun():
        return len(list(run.glob("shards/*.json"))) >= 2

    ranks.run("embed", run, config(chain), 2, code=None, signal_when=(signal.SIGKILL, begun))
    assert not (run / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in run.glob("shards/*.json")}
    assert len(kept) >= 2
    ranks.run("embed", run, config(chain))
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in run.glob("shards/*.json")}.items()
    assert parts(run) == parts(alone)
    assert read_manifest(run).identity == read_manifest(alone).identity
