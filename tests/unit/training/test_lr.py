"""Learning-rate schedules, in images."""

import math

import pytest
from pydantic import ValidationError

from hdtrain.config.engine import OptimConfig
from hdtrain.training.lr import lr_at, lr_factor

BATCH = 8


def test_warm_up_rises_linearly_to_the_rate_itself():
    config = OptimConfig(lr=2e-3, warmup_images=99)
    assert [lr_at(images, config, 1000, BATCH) for images in (0, 49, 98, 99, 999)] == pytest.approx(
        [2e-5, 1e-3, 1.98e-3, 2e-3, 2e-3]
    )


def test_warm_up_begins_where_it_is_told_to():
    config = OptimConfig(lr=5e-5, warmup_images=40_000, warmup_from=1e-6)
    assert lr_at(0, config, 10**6, BATCH) == pytest.approx(1e-6, rel=2e-3)
    assert lr_at(20_000, config, 10**6, BATCH) == pytest.approx(2.55e-5, rel=1e-3)
    rates = [lr_at(images, config, 10**6, BATCH) for images in range(0, 50_000, 500)]
    assert rates == sorted(rates)
    assert rates[-1] == lr_at(40_000, config, 10**6, BATCH) == 5e-5


def test_a_warm_up_that_would_fall_is_refused():
    with pytest.raises(ValidationError, match=r"warmup_from \(0.001\) must not be greater than lr \(0.0001\)"):
        OptimConfig(lr=1e-4, warmup_from=1e-3)


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_decay_begins_after_the_warm_up_and_ends_at_zero(schedule, half):
    config = OptimConfig(lr=1.0, warmup_images=200, schedule=schedule)
    assert lr_at(200, config, 1200, BATCH) == 1.0
    assert lr_at(700, config, 1200, BATCH) == pytest.approx(half)
    assert lr_at(1200, config, 1200, BATCH) == pytest.approx(1.0 if schedule == "constant" else 0.0)
    assert lr_at(5000, config, 1200, BATCH) == lr_at(1200, config, 1200, BATCH)


def test_cosine_is_the_cosine():
    config = OptimConfig(lr=3.0, schedule="cosine")
    for images in range(0, 1000, 100):
        assert lr_at(images, config, 1000, BATCH) == pytest.approx(1.5 * (1 + math.cos(math.pi * images / 1000)))


def test_the_batch_does_not_matter_unless_a_reference_is_given():
    config = OptimConfig(lr=1e-4, schedule="cosine", warmup_images=100)
    for images in (0, 50, 500, 900):
        assert lr_at(images, config, 1000, 4) == lr_at(images, config, 1000, 4096)


@pytest.mark.parametrize(("scaling", "factor"), [("sqrt", 4.0), ("linear", 16.0)])
def test_another_batch_than_the_reference_rescales_the_whole_schedule(scaling, factor):
    rules = {"lr": 5e-5, "warmup_images": 100, "warmup_from": 1e-6, "schedule": "linear"}
    plain, scaled = OptimConfig(**rules), OptimConfig(**rules, reference_batch_size=4, scaling=scaling)
    assert lr_factor(scaled, 64) == factor
    assert lr_factor(scaled, 4) == 1.0
    for images in (0, 50, 100, 700, 1000):
        at_reference = lr_at(images, plain, 1000, 64)
        assert lr_at(images, scaled, 1000, 64) == pytest.approx(factor * at_reference)
        assert lr_at(images, scaled, 1000, 4) == at_reference
        assert lr_at(images, scaled, 1000, 1) == pytest.approx(at_reference / (2 if scaling == "sqrt" else 4))
