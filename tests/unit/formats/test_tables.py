"""The results file and the run record read back what was written."""

import json

import pytest

from hdtrain.errors import ManifestError
from hdtrain.formats.provenance import read_run_json, record_end, record_prepared, record_start
from hdtrain.formats.results import ArmResult, Metric, Results
from hdtrain.formats.run_dir import RunDir


def test_results_read_back_equal_and_other_versions_are_refused(tmp_path):
    metric = Metric(value=0.5, interval=(0.4, 0.6), n=10, seeds=[1, 2], method="bootstrap")
    arm = ArmResult(num_real=10, num_synthetic=0, steps=5, metrics={"accuracy": metric}, confusion=[[5, 0], [1, 4]])
    results = Results(
        classes=["a", "b"],
        baseline="real",
        arms={"real": arm},
        colour_histogram={"accuracy": metric},
        image_sets={},
        nearest=[],
        encoder={},
        reference={},
    )
    path = tmp_path / "results.json"
    results.write(path)
    assert Results.read(path) == results
    for tree, message in (
        ({"version": 9}, "results version 9, this hdtrain reads 2; run `hdtrain evaluate` again"),
        ([], "results version None, this hdtrain reads 2"),
        ({"version": 2, "classes": 3}, "results damaged: classes: Input should be a valid list; run `hdtrain eval"),
    ):
        path.write_text(json.dumps(tree))
        with pytest.raises(ManifestError, match=message):
            Results.read(path)


def test_every_attempt_is_recorded_with_its_end(tmp_path):
    run = RunDir(tmp_path)
    record_prepared(run, "shard", "f", "g")
    assert read_run_json(run) == {"stage": "shard", "fingerprint": "f", "fingerprint_without_raw_data": "g"}
    for status in ("stopped", "done"):
        record_prepared(run, "shard", "f", "g")
        record_start(run, "shard", "f", ranks=2)
        record_end(run, status)
    record = read_run_json(run)
    assert [(a["status"], a["ranks"]) for a in record["attempts"]] == [("stopped", 2), ("done", 2)]
    assert record["versions"]["python"]
    assert all(a["ended"] >= a["started"] for a in record["attempts"])
