"""Classifier-free guidance: the formula, and how much of the denoiser it costs."""

import pytest
import torch

from hdtrain.diffusion.conditioning import at_classes

LABELS, HIDDEN = torch.tensor([0, 2, 1]), 3
Z, T = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 5, 5])


def denoiser(z: torch.Tensor, t: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z + (classes + 1).view(-1, 1, 1, 1)) * (1 + t.view(-1, 1, 1, 1) / 10)


@pytest.mark.parametrize(("weight", "sizes"), [(None, [3]), (1.0, [3]), (0.0, [3]), (4.0, [6]), (0.5, [6])])
def test_the_output_leads_from_the_hidden_class_to_the_asked_one_and_beyond(weight, sizes):
    asked = []

    def counted(z: torch.Tensor, t: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        asked.append(len(z))
        return denoiser(z, t, classes)

    found = at_classes(counted, LABELS, HIDDEN, weight)(Z, T)
    without, with_class = denoiser(Z, T, torch.full((3,), HIDDEN)), denoiser(Z, T, LABELS)
    w = 1.0 if weight is None else weight
    torch.testing.assert_close(found, without + w * (with_class - without))
    assert asked == sizes, "one forward pass, of both only where both are needed"
