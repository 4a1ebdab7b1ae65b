"""Following the graph of stages through the manifests."""

import json
import shutil

import pytest
from reporting_helpers import Tree, collect_tree

from hdtrain.errors import ManifestError
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.plots import MAX_POINTS, segments, thin
from hdtrain.reporting.runs import read_curves


def test_every_ancestor_is_found_once_and_parents_come_first(built: Tree) -> None:
    data = collect_tree(built)
    assert len(data.runs) == 19
    seen: set[str] = set()
    for name, run in data.runs.items():
        assert set(run.parents.values()) <= seen
        seen.add(name)
    assert data.runs["latents"].parents == {"images.0": "corpus", "vae": "vae"}
    assert data.warnings == []


def test_data_sets_below_a_selection_count_as_the_selection(built: Tree) -> None:
    data = collect_tree(built)
    assert "selection" in data.runs["arms/selective-0.5"].parents.values()
    assert data.evaluation.parents["arms.selective-0.5.synthetic"] == "selection"
    assert list(data.selection.datasets) == ["random-0.5", "selective-0.5", "random-1", "selective-1"]


def test_time_is_summed_over_attempts_and_killed_ones_are_counted(built: Tree) -> None:
    record_path = RunDir(built.root / "vae").run_json
    record = json.loads(record_path.read_bytes())
    record["attempts"] = [
        {"started": 100.0, "ended": 130.0, "ranks": 2, "status": "stopped"},
        {"started": 200.0, "ranks": 2},
        {"started": 300.0, "ended": 312.5, "ranks": 4, "status": "done"},
    ]
    record_path.write_text(json.dumps(record))
    run = collect_tree(built).runs["vae"]
    assert (run.seconds, len(run.attempts), run.unfinished_attempts, run.ranks) == (42.5, 3, 1, [2, 4])


def test_ancestors_that_are_gone_or_changed_are_named_not_fatal(built: Tree) -> None:
    shutil.rmtree(built.root / "corpus")
    manifest = RunDir(built.root / "ldm").manifest
    manifest.write_text(manifest.read_text().replace('"name": "ldm"', '"name": "another"'))
    data = collect_tree(built)
    assert data.runs["corpus"].manifest is None
    assert "vae: its parent 'images.0' (corpus) is not published any more" in data.warnings
    assert "synthetic: its parent 'denoiser' (ldm) has changed since this was made" in data.warnings


def test_altered_results_are_refused(built: Tree) -> None:
    path = RunDir(built.root / "evaluation").results
    path.write_text(path.read_text().replace("0.735", "0.935"))
    with pytest.raises(ManifestError, match="altered since the evaluation was published"):
        collect_tree(built)


def test_half_written_metrics_lines_are_counted(built: Tree) -> None:
    path = built.root / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "time": 5.0, "loss/l1": 0.5}\n{"step": 2, "loss/l1": 0.25, "note": "x"}\n{"step": 3, "lo'
    )
    curves = read_curves(path)
    assert curves
    assert curves.scalars == {"loss/l1": [(1, 0.5), (2, 0.25)]}
    assert curves.unreadable_lines == 1
    assert read_curves(built.root / "absent.jsonl") is None


def test_a_step_that_falls_back_starts_a_new_line_and_thinning_keeps_the_mean() -> None:
    assert segments([(1, 1.0), (2, 2.0), (1, 3.0), (2, 4.0)]) == [[(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 4.0)]]
    points = [(step, float(step % 2)) for step in range(4 * MAX_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS
    assert {value for _, value in thinned} == {0.5}
    assert thinned[-1][0] == points[-1][0]
