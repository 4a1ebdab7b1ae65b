"""Topping up the candidates of a selection: the same on any number of ranks, and after a kill."""

import signal

import pyarrow.parquet as pq
import pytest

from hdtrain.formats.manifest import read_manifest


def config(chain, gates, **changes):
    return {
        "real": [str(chain["labelled"])],
        "candidates": [str(chain["candidates"])],
        "encoder": {"kind": "classifier", "classifier": str(chain["phi"])},
        "classifier": str(chain["phi"]),
        "gates": {"nearest_centroid": False, **gates},
        "ratios": [0.5],
        "resolution": 32,
        **changes,
    }


def shards(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "topped-up" / "shards").glob("*.tar"))}


@pytest.mark.slow
def test_two_ranks_that_were_killed_while_topping_up_end_with_the_bytes_of_one(chain, ranks, tmp_path):
    ungated = ranks.run("select", tmp_path / "ungated", config(chain, {}))
    rows = pq.read_table(ungated / "index.parquet").to_pylist()
    third = sorted((row["confidence"] for row in rows if row["class"] == "dots"), reverse=True)[2]
    short = config(chain, {"confidence": third}, top_up=3.0)  # 3 of the 5 dots that are wanted pass

    one, two = tmp_path / "one", tmp_path / "two"
    ranks.run("select", one, short)
    assert "too few pass the gates: sampling" in ranks.said()
    finished = lambda: list((two / "topped-up" / "shards").glob("*.json"))  # noqa: E731
    ranks.run("select", two, short, 2, code=-9, signal_when=(signal.SIGKILL, finished))
    before = {path: path.stat().st_mtime_ns for path in finished()}
    assert 0 < len(before) < len(shards(one))
    assert not (two / "manifest.json").exists()

    ranks.run("select", two, short, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished shards were made again"
    assert shards(two) == shards(one)
    assert read_manifest(two).identity == read_manifest(one).identity
    for name in ("topped-up", "selective-0.5", "random-0.5"):
        assert read_manifest(two / name).identity == read_manifest(one / name).identity
