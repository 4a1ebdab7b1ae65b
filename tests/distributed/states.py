"""Comparing states of training."""

from torch import Tensor


def relative_difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """‖got − expected‖ / ‖expected‖ over all tensors together."""
    assert got.keys() == expected.keys()
    error = sum(float((got[name].double() - expected[name].double()).square().sum()) for name in expected)
    return (error / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5
