"""Collectives and the engine on real gloo ranks."""

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives(ranks, size):
    ranks.call("on_ranks:collectives", ranks=size)


def test_the_adaptive_weight_of_a_cut_batch_is_that_of_the_whole(ranks):
    ranks.call("on_ranks:one_adaptive_weight", ranks=2)


def test_a_failing_rank_is_noticed(ranks):
    with pytest.raises(AssertionError, match="no_such_function"):
        ranks.call("on_ranks:no_such_function")


@pytest.mark.parametrize(
    ("first", "second", "zero_stage"), [(2, 1, 1), (1, 2, 2), (2, 4, 1), (2, 2, 0), (2, 4, 3), (1, 3, 3)]
)
def test_saved_state_goes_on_at_another_world_size(ranks, tmp_path, first, second, zero_stage):
    states = {}
    for name, sizes in (("moved", (first, second)), ("whole", (1, 1))):
        for size in sizes:
            ranks.call("on_ranks:three_more_steps", str(tmp_path / name), zero_stage, ranks=size)
        states[name] = {
            f"{path.stem} {key}": value
            for path in sorted((tmp_path / name / "after-6").iterdir())
            for key, value in load_file(path).items()
        }
    assert any("exp_avg" in key for key in states["moved"])
    torch.testing.assert_close(states["moved"], states["whole"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_loaded_elsewhere_is_what_was_saved_bit_for_bit(ranks, tmp_path, precision):
    """Sizes of tensors that no number of ranks divides."""
    places = [(2, 1), (3, 3), (3, 2), (1, 3), (4, 1), *([(2, 0)] if precision == "fp32" else [])]
    for size, zero_stage in places:
        ranks.call("on_ranks:loaded_is_saved", str(tmp_path / "state"), zero_stage, precision, ranks=size)
