"""Batch plans: every image of a global batch is read once, at any world size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdtrain.config.batch import BatchPlan, every_steps
from hdtrain.config.engine import BatchConfig, DurationConfig
from hdtrain.errors import ConfigError


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_ranks_and_passes_read_every_position_of_a_step_once(world_size, micro, accumulation, step):
    total = world_size * micro * accumulation
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=total, micro_batch_size=micro), world_size)
    assert plan.accumulation_steps == accumulation
    read = [i for a in range(accumulation) for rank in range(world_size) for i in plan.positions(step, a, rank)]
    assert read == list(range(step * total, (step + 1) * total))


@pytest.mark.parametrize(
    ("total", "micro", "said"),
    [
        (12, 5, "that fit: 1, 2, 3, 6"),
        (
            7,
            None,
            "7 images cannot be split over 2 ranks; global batch sizes that can: 6, 8, and any other multiple of 2",
        ),
        (1, None, "global batch sizes that can: 2, and"),
    ],
)
def test_a_batch_that_does_not_divide_says_what_would(total, micro, said):
    with pytest.raises(ConfigError, match=said):
        BatchPlan.from_config(BatchConfig(global_batch_size=total, micro_batch_size=micro), 2)


def test_durations_in_images_become_steps_that_cover_them():
    plan = BatchPlan.from_config(BatchConfig(global_batch_size=8), 2)
    assert [plan.num_steps(images) for images in (1, 8, 9, 80)] == [1, 1, 2, 10]
    assert every_steps(None, DurationConfig(images=800), 10, 8) == 10
    assert every_steps(1, DurationConfig(images=800), 10, 8) == 1
