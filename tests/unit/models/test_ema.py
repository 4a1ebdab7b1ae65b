"""The moving average against a loop written by hand."""

import torch

from hdtrain.models.ema import Ema


def test_warm_up_then_the_decay_itself():
    torch.manual_seed(0)
    steps = [torch.randn(3, dtype=torch.float64) for _ in range(60)]
    ema, expected = Ema({"w": steps[0].float()}, decay=0.8), steps[0].clone()
    for n, value in enumerate(steps[1:]):
        ema.update(iter([("w", value.float())]))
        decay = min(0.8, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.updates == 59
    torch.testing.assert_close(ema.shadow["w"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_is_kept_in_fp32_and_apart_from_the_weights():
    weights = {"w": torch.ones(2, dtype=torch.bfloat16)}
    ema = Ema(weights, decay=0.9)
    weights["w"].mul_(5)
    assert ema.shadow["w"].dtype == torch.float32
    assert torch.equal(ema.shadow["w"], torch.ones(2))
