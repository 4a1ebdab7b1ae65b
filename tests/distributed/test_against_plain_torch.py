"""Any ZeRO stage on any number of ranks with any accumulation computes what plain torch computes."""

import pytest

STAGES = [0, 1, 2, 3]
EVERY = [(size, stage, accumulation) for size in (1, 2, 3) for stage in STAGES for accumulation in (1, 2, 4)]


def test_a_denoiser_trains_on_two_ranks_as_in_plain_torch(ranks):
    ranks.call("against_plain:denoisers_are_the_same", [(0, 1), (1, 2), (2, 2), (3, 1)], ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stage", "accumulation"), EVERY)
def test_a_denoiser_trains_everywhere_as_in_plain_torch(ranks, size, stage, accumulation):
    ranks.call("against_plain:denoisers_are_the_same", [(stage, accumulation)], ranks=size)


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_an_autoencoder_and_its_discriminator_train_on_two_ranks_as_in_plain_torch(ranks, tmp_path, stage):
    ranks.call("against_plain:autoencoders_are_the_same", [(stage, 1), (stage, 2)], str(tmp_path), ranks=2)
