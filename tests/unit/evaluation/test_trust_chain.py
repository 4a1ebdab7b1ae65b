"""Trust, through the real stages: copies, failures and colours of images that `shard` and `sample` published."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tiny_chain import SIZE_PX, prepare, run_here
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from hdtrain.formats.results import Results
from hdtrain.reporting.trust import judge_images


@pytest.fixture(scope="module")
def copies(chain, tmp_path_factory):
    """The training images turned by a quarter, slightly blurred and darker, packed by `shard`."""
    root = tmp_path_factory.mktemp("copies")
    for path in sorted((chain["labelled"].parent / "raw" / "labelled").rglob("*.png")):
        turned = Image.open(path).rotate(90).filter(ImageFilter.GaussianBlur(0.5))
        darker = turned.point(lambda value: int(0.95 * value))
        target = root / "raw" / path.parent.name / f"copy-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        darker.save(target)
    assert run_here("shard", root / "run", {"sources": [{"path": str(root / "raw")}], "samples_per_shard": 7}) == 0
    return root / "run"


def _config(chain, copies, **changes):
    phi = str(chain["phi"])
    config = {
        "test": str(chain["test"]),
        "train": str(chain["labelled"]),
        "arms": {
            "real": {"classifier": phi},
            "copied": {"classifier": phi, "synthetic": str(copies), "series": "copies"},
            "sampled": {"classifier": phi, "synthetic": str(chain["candidates"]), "series": "samples"},
        },
        "baseline": "real",
        "encoder": {"kind": "classifier", "classifier": phi},
        "judge": phi,
        "resolution": SIZE_PX,
        "memorisation_px": 16,
        "failures": 6,
        "batch_size": 5,
        "bootstrap_resamples": 100,
    }
    return config | changes


@pytest.fixture(scope="module")
def evaluation(chain, copies, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trust") / "evaluation"
    assert run_here("evaluate", directory, _config(chain, copies)) == 0
    return directory


@pytest.fixture(scope="module")
def results(evaluation):
    return Results.read(evaluation / "results.json")


def test_turned_copies_are_flagged_in_pixels_named_and_distrusted(results):
    shares = {name: found.metrics["memorised_share_pixels"] for name, found in results.image_sets.items()}
    assert shares["copied"].value > 0.9
    assert shares["copied"].interval[0] > 0.7
    assert max(shares["sampled"].value, shares["real test images"].value) < 0.2
    pairs = [pair for pair in results.nearest if pair.space == "pixels" and pair.memorised]
    assert len(pairs) >= 18
    right = [pair for pair in pairs if pair.real.split("labelled")[-1] == pair.synthetic.split("labelled")[-1]]
    assert len(right) >= 18
    # The copy was turned by one quarter, and so must the original be.
    assert {(pair.quarter_turns, pair.mirrored) for pair in right} == {(1, False)}
    either = results.image_sets["copied"].metrics["memorised_share"].value
    assert either >= shares["copied"].value
    trust = {item.image_set: item for item in judge_images(results)}["copied"]
    assert {check.name: check.passed for check in trust.checks}["memorised share"] is False


def test_a_judge_that_had_a_part_in_making_the_images_is_warned_about(results):
    """φ adapted the decoder that drew the candidates; of the copies it knows nothing."""
    (warning,) = [text for text in results.protocol["warnings"] if "judge" in text]
    assert "had a part in making the images of sampled:" in warning


def test_images_that_an_arm_never_saw_are_named(results):
    told = [text for text in results.protocol["warnings"] if "was not trained on the images of" in text]
    assert [text.partition(":")[0] for text in told] == ["arms.copied", "arms.sampled"]


def test_distances_are_distributions_with_their_threshold(results):
    for space, found in results.distances.items():
        assert found.real_to_real[0] <= found.threshold <= found.real_to_real[1] + 1e-12, space
        for name, values in found.sets.items():
            assert len(values) == 101
            assert values == sorted(values)
            flagged = results.image_sets[name].metrics[f"memorised_share_{space}"].value
            assert np.searchsorted(values, found.threshold) / 100 == pytest.approx(flagged, abs=0.06)


def test_colours_of_copies_differ_as_they_were_changed(results):
    copied = results.colours["copied"]["all"]
    assert copied["OD green mean"].effect_size > 0.2
    assert results.colours["real training images"]["all"]["OD green mean"].ks is None
    assert results.colours["sampled"]["dots"]["eosin sd"].n == 6
    assert (
        results.image_sets["sampled"].metrics["colour_ks"].value
        > results.image_sets["copied"].metrics["colour_ks"].value
    )


def test_failures_are_wrong_by_the_judge_or_far_from_their_class(results):
    judged = [failure for failure in results.failures if failure.kind == "judge"]
    assert judged
    assert all(failure.taken_for != failure.label and failure.confidence >= 0.5 for failure in judged)
    far = [failure for failure in results.failures if failure.kind == "far"]
    assert sorted(failure.label for failure in far) == ["dots"] * 3 + ["stripes"] * 3
    distances = [failure.distance for failure in far]
    assert distances == sorted(distances, reverse=True)


def test_arms_of_other_series_are_compared_pairwise_only_at_the_same_ratio(results):
    assert results.arms["copied"].series == "copies"
    assert all(not key.startswith("accuracy_gain_over") for key in results.arms["copied"].metrics)
    assert results.arms["copied"].metrics["accuracy_gain"].value == 0


def test_arm_figures_agree_with_torchmetrics_on_the_predictions_on_disk(evaluation, results):
    with np.load(evaluation / "predictions" / "00-real.npz") as said:
        probabilities, labels = torch.from_numpy(said["probabilities"][0]), torch.from_numpy(said["labels"])
    metrics = results.arms["real"].metrics
    expected = multiclass_accuracy(probabilities, labels, num_classes=2, average="micro")
    assert metrics["accuracy"].value == pytest.approx(float(expected))
    error = multiclass_calibration_error(probabilities, labels, num_classes=2, n_bins=15, norm="l1")
    assert metrics["calibration_error"].value == pytest.approx(float(error), rel=1e-4)


@pytest.mark.slow
def test_two_ranks_write_the_same_results(chain, copies, results, tmp_path):
    directory = prepare("evaluate", tmp_path / "run", _config(chain, copies))
    base = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29773"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "hdtrain.stages", "evaluate", str(directory)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(200) for process in ranks] == [0, 0]
    assert Results.read(directory / "results.json") == results
