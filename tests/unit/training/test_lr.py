"""Learning-rate schedules, in images."""

import math

import pytest

from hdtrain.config.engine import OptimConfig
from hdtrain.training.lr import lr_at


def test_warm_up_rises_linearly_to_the_rate_itself():
    config = OptimConfig(lr=2e-3, warmup_images=99)
    assert [lr_at(images, config, 1000) for images in (0, 49, 98, 99, 999)] == pytest.approx(
        [2e-5, 1e-3, 1.98e-3, 2e-3, 2e-3]
    )


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_decay_begins_after_the_warm_up_and_ends_at_zero(schedule, half):
    config = OptimConfig(lr=1.0, warmup_images=200, schedule=schedule)
    assert lr_at(200, config, 1200) == 1.0
    assert lr_at(700, config, 1200) == pytest.approx(half)
    assert lr_at(1200, config, 1200) == pytest.approx(1.0 if schedule == "constant" else 0.0)
    assert lr_at(5000, config, 1200) == lr_at(1200, config, 1200)


def test_cosine_is_the_cosine():
    config = OptimConfig(lr=3.0, schedule="cosine")
    for images in range(0, 1000, 100):
        assert lr_at(images, config, 1000) == pytest.approx(1.5 * (1 + math.cos(math.pi * images / 1000)))
