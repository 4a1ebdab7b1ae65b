"""Augmentations: true symmetries, drawn by position, and colours that stay in range."""

import torch

from hdtrain.config.batch import BatchPlan
from hdtrain.distributed.seeds import Draws
from hdtrain.training.augment import conventional, random_symmetry


def draws(count: int, step: int = 0, world_size: int = 1, rank: int = 0) -> Draws:
    return Draws(0, step, 0, rank, BatchPlan(count, count // world_size, 1, world_size), torch.device("cpu"))


def test_each_of_the_eight_symmetries_of_the_square_comes_about_equally_often():
    x = torch.arange(12.0).view(1, 3, 2, 2).repeat(1, 1, 1, 1)
    x = torch.nn.functional.pad(x, (0, 1, 0, 1), value=-1)
    expected = [f for k in range(4) for f in (torch.rot90(x[0], k, (1, 2)), torch.rot90(x[0], k, (1, 2)).flip(2))]
    turned = random_symmetry(x.expand(800, -1, -1, -1), draws(800))
    counts = [sum(torch.equal(image, symmetry) for image in turned) for symmetry in expected]
    assert sum(counts) == 800
    assert min(counts) > 60


def test_ranks_turn_an_image_as_one_rank_does():
    x = torch.randn(6, 3, 4, 4)
    for augment in (random_symmetry, conventional):
        whole = augment(x, draws(6))
        parts = [augment(x[3 * rank : 3 * rank + 3], draws(6, world_size=2, rank=rank)) for rank in range(2)]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(whole, augment(x, draws(6, step=1)))


def test_conventional_augmentation_keeps_shape_and_range_and_changes_every_image():
    x = torch.rand(32, 3, 16, 16) * 2 - 1
    augmented = conventional(x, draws(32))
    assert augmented.shape == x.shape
    assert augmented.abs().max() <= 1
    assert ((augmented - x).abs().amax(dim=(1, 2, 3)) > 0.05).all()
    flat = conventional(torch.full((64, 3, 8, 8), 0.2), draws(64))
    assert (flat.std(dim=(1, 2, 3)) < 1e-6).all(), "a crop of one colour is one colour"
    assert 0.02 < flat.mean(dim=(1, 2, 3)).std() < 0.3
