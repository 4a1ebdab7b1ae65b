"""`evaluate` on real patches and briefly trained classifiers: every figure in results.json, honestly labelled."""

import numpy as np
import pytest
from stage_helpers import CLASSES, publish_classifier, publish_images, read_patches, run

from hdtrain.formats.results import Results

pytestmark = pytest.mark.needs_data
TRAIN, TEST, POOL = 12, 8, 10


@pytest.fixture(scope="module")
def world(tmp_path_factory, real_data):
    """Train and test from different slides; 'synthetic' images: other real ones, and copies of training images."""
    root = tmp_path_factory.mktemp("evaluate")
    train = read_patches(real_data, "train", 0, TRAIN)
    test = read_patches(real_data, "test", 0, TEST)
    fresh = [(f"f{key}", *rest) for key, *rest in read_patches(real_data, "train", 60, POOL)]
    copies = [(f"c{key}", *rest) for key, *rest in train[:9]]
    for name, samples in (("train", train), ("test", test), ("fresh", fresh), ("pool", fresh + copies)):
        publish_images(root / name, samples, 13, name)
    publish_classifier(root / "real-only", train)
    publish_classifier(root / "with-fresh", train + fresh, num_synthetic=len(fresh))
    publish_classifier(root / "augmented", train, seeds=(5, 6))
    return root


def _config(root, **changes):
    arm = {"classifier": str(root / "with-fresh"), "synthetic": str(root / "fresh"), "description": "real + fresh"}
    config = {
        "test": str(root / "test"),
        "train": str(root / "train"),
        "arms": {
            "real": {"classifier": str(root / "real-only")},
            "augment": {"classifier": str(root / "augmented")},
            "selective/1": arm,
        },
        "baseline": "real",
        "encoder": {"kind": "classifier", "classifier": str(root / "real-only")},
        "judge": str(root / "real-only"),
        "candidates": str(root / "pool"),
        "resolution": 32,
        "batch_size": 16,
        "bootstrap_resamples": 200,
        "kid_subset_size": 20,
    }
    return {**config, **changes}


@pytest.fixture(scope="module")
def results(world):
    manifest = run("evaluate", world / "evaluation", _config(world))
    assert list(manifest.files) == ["results.json"]
    return Results.read(world / "evaluation" / "results.json")


def test_every_arm_has_its_figures_with_n_seeds_and_intervals(results):
    assert list(results.arms) == ["real", "augment", "selective/1"]
    for name, arm in results.arms.items():
        wanted = {"accuracy", "macro_f1", "weighted_f1", "macro_sensitivity", "weighted_sensitivity", "specificity"}
        assert wanted <= arm.metrics.keys()
        assert ("accuracy_gain" in arm.metrics) == (name != "real") == (arm.p_value is not None)
        assert 0 < arm.metrics["calibration_error"].value < 1
        for metric in [metric for key, metric in arm.metrics.items() if key != "calibration_error"]:
            assert metric.interval[0] <= metric.value <= metric.interval[1]
            assert (metric.n, len(metric.seeds)) == (3 * TEST, 2)
        assert np.sum(arm.confusion) == 2 * 3 * TEST
        assert arm.metrics["accuracy"].value == pytest.approx(np.trace(arm.confusion) / np.sum(arm.confusion))
        assert arm.per_class.keys() == set(CLASSES)
    selective = results.arms["selective/1"]
    gain = selective.metrics["accuracy"].value - results.arms["augment"].metrics["accuracy"].value
    assert selective.metrics["accuracy_gain_over_augment"].value == pytest.approx(gain)
    assert (selective.num_real, selective.num_synthetic, selective.steps) == (3 * TRAIN, 3 * POOL, 12)


def test_predictions_on_disk_give_the_confusion_matrix(world, results):
    with np.load(world / "evaluation" / "predictions" / "02-selective_1.npz") as said:
        confusion = np.zeros((3, 3), int)
        for probabilities in said["probabilities"]:
            np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
            np.add.at(confusion, (said["labels"], probabilities.argmax(1)), 1)
    assert confusion.tolist() == results.arms["selective/1"].confusion


def test_image_sets_stand_beside_the_yardstick_of_real_test_images(results):
    assert list(results.image_sets) == ["selective/1", "candidates", "real test images"]
    for name, result in results.image_sets.items():
        fd = [metric for metric in result.metrics if metric.startswith("FD-")]
        assert fd == ["FD-classifier-real-only"], name
        assert result.metrics["label_agreement"].n == result.num_images
        assert "precision" in result.metrics
    assert results.image_sets["real test images"].num_images == 3 * TEST


def test_copies_of_training_images_are_called_memorised(results):
    candidates = results.image_sets["candidates"].metrics["memorised_share"]
    assert candidates.value >= 9 / (3 * POOL + 9)
    for space in ("features", "pixels"):
        copies = [pair for pair in results.nearest if pair.memorised and pair.synthetic == f"c{pair.real}"]
        assert len([pair for pair in copies if pair.space == space and pair.relative < 1e-3]) == 9
    assert results.image_sets["selective/1"].metrics["memorised_share"].value < 0.2


def test_what_needs_more_images_is_left_out_and_said_so(results):
    assert any("FDinf" in line and "selective/1" in line for line in results.protocol["left_out"])
    assert any("lymph: KD-classifier-real-only needs 10 images" in line for line in results.protocol["left_out"])
    assert results.colour_histogram.keys() == {"accuracy", "macro_f1"}
    assert "leave-slides-out" in results.protocol["colour_histogram"]["chosen_by"]


def test_a_second_run_gives_the_same_file(world, results):
    run("evaluate", world / "again", _config(world))
    assert Results.read(world / "again" / "results.json") == results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "train"}, "same images as the training set"),
        ({"test": "leaky"}, "byte for byte"),
        ({"judge": "foreign"}, "classes differ: judge"),
        ({"judge": "with-fresh"}, "was trained on 30 synthetic images"),
    ],
)
def test_what_must_not_be_compared_is_refused(world, real_data, tmp_path, capsys, changes, message):
    if "leaky" in changes.values() and not (world / "leaky").exists():
        train, test = read_patches(real_data, "train", 0, 1), read_patches(real_data, "test", 0, 2)
        publish_images(world / "leaky", test + train, 20, "test")
    if "foreign" in changes.values():
        publish_classifier(world / "foreign", read_patches(real_data, "train", 0, 1), classes=["x", "y", "z"], steps=1)
    config = _config(world, **{key: str(world / name) for key, name in changes.items()})
    run("evaluate", tmp_path / "run", config, code=2)
    assert message in capsys.readouterr().err
