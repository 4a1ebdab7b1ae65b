"""Temperature scaling: the fit, the calibration error, and what a published classifier carries."""

import pytest
import torch
from classifier_helpers import validated
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hdtrain.evaluation.downstream import METRICS, confusion_matrix
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.classifier import load_classifier
from hdtrain.training.calibration import LARGEST_TEMPERATURE, Logits, calibrate, fit_temperature


def overconfident(temperature: float, n: int = 20_000) -> Logits:
    """Labels drawn from the softmax of logits that are then multiplied by `temperature`."""
    source = torch.Generator().manual_seed(0)
    values = torch.randn(n, 4, dtype=torch.float64, generator=source) * 2
    labels = torch.multinomial(values.softmax(1), 1, generator=source).squeeze(1)
    return Logits(values * temperature, labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature):
    logits = overconfident(temperature)
    found, figures = calibrate(logits)
    assert found == pytest.approx(temperature, rel=0.03)
    assert figures["ece_calibrated"] < 0.012
    assert figures["nll_calibrated"] <= figures["nll"]
    if temperature != 1.0:
        assert figures["ece"] > 0.08
        assert figures["nll_calibrated"] < figures["nll"] - 0.01
    around = [logits.at(found * factor).loss for factor in (0.99, 1.01)]
    assert min(around) > figures["nll_calibrated"]


def test_where_everything_is_right_the_temperature_stays_within_its_bounds():
    labels = torch.arange(6) % 2
    separable = Logits(torch.nn.functional.one_hot(labels).double(), labels)
    assert fit_temperature(separable) == pytest.approx(1 / LARGEST_TEMPERATURE, rel=1e-3)


def test_the_calibration_error_is_the_bins_mean_gap_between_confidence_and_accuracy():
    confidence, right = torch.tensor([0.55, 0.58, 0.95, 0.95, 1.0]), torch.tensor([1, 0, 1, 0, 1])
    values = torch.stack([confidence, 1 - confidence], 1).double().clamp(1e-12).log()
    logits = Logits(values, 1 - right)
    # bins of 1/15: 0.55 and 0.58 fall into one, 0.95, 0.95 and 1.0 into the last
    expected = (2 * abs(0.5 - 0.565) + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert logits.calibration_error == pytest.approx(expected, abs=1e-6)
    assert logits.reliability()[0].tolist() == [0] * 8 + [2] + [0] * 5 + [3]


def test_macro_f1_is_that_of_the_evaluation():
    source = torch.Generator().manual_seed(1)
    logits = Logits(torch.randn(50, 5, generator=source).double(), torch.randint(4, (50,), generator=source))
    never_predicted = torch.tensor([0, 0, 0, 0, -9.0])
    for shift in (torch.zeros(5), never_predicted):
        shifted = Logits(logits.values + shift, logits.labels)
        confusion = confusion_matrix(shifted.labels.numpy(), shifted.predictions.numpy(), 5)
        assert shifted.macro_f1 == pytest.approx(float(METRICS["macro_f1"](confusion)))
        assert shifted.accuracy == pytest.approx(float(METRICS["accuracy"](confusion)))


def test_a_classifier_is_published_with_its_temperature_and_what_it_mends(chain, held_out, tmp_path):
    changes = {"validation": str(held_out), **validated(3, 3), "seeds": [0, 4]}
    run = chain.make("phi", tmp_path / "phi", **changes)
    info = read_manifest(run).info
    assert info["temperature"].keys() == info["calibration"].keys() == {"0", "4"}
    for seed, figures in info["calibration"].items():
        assert load_classifier(run, int(seed)).temperature == info["temperature"][seed] != 1.0
        assert figures["num_images"] == 12
        assert figures["nll"] == info["validation"][seed]["loss"]
        assert figures["nll_calibrated"] <= figures["nll"]
        assert 0 <= figures["ece_calibrated"] <= 1
    board = EventAccumulator(str(run / "seed-0/tb"), size_guidance={"images": 0})
    board.Reload()
    assert "reliability" in board.Tags()["images"]
