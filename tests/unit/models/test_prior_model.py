"""The prior's network: positions, holes, conditions that are hidden."""

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from hdtrain.models.prior import build_prior, grid_positions


@pytest.fixture(scope="module")
def prior():
    """With classes, texts and numbers; no weight is zero, so that everything it is told shows."""
    torch.manual_seed(0)
    network = build_prior("dit-tiny", 5, num_classes=3, text_dim=4, numeric_dim=2).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def told(rows: int = 3, columns: int = 4, count: int = 2) -> list[torch.Tensor]:
    """z, t, present, given, labels, text, numeric."""
    source = torch.Generator().manual_seed(1)
    return [
        torch.randn(count, rows, columns, 5, generator=source),
        torch.tensor([10, 900][:count]),
        torch.ones(count, rows, columns, dtype=torch.bool),
        torch.ones(count, 3, dtype=torch.bool),
        torch.tensor([0, 2][:count]),
        torch.randn(count, 4, generator=source),
        torch.randn(count, 2, generator=source),
    ]


def test_positions_are_those_of_mae_and_dit():
    theirs = get_2d_sincos_pos_embed(32, (6, 6), base_size=6, output_type="pt")
    assert torch.allclose(grid_positions(6, 6, 32), theirs.float(), atol=1e-6)


def test_a_position_does_not_depend_on_the_size_of_the_grid():
    small, large = grid_positions(2, 3, 16).view(2, 3, 16), grid_positions(5, 9, 16).view(5, 9, 16)
    assert torch.equal(small, large[:2, :3])
    assert not torch.allclose(large[1, 0], large[0, 1])


def test_what_lies_in_a_hole_changes_nothing_elsewhere(prior):
    given = told()
    given[2][:, 1, 2] = False
    other = [x.clone() for x in given]
    other[0][:, 1, 2] = 1e4
    there = given[2]
    assert torch.equal(prior(*given)[there], prior(*other)[there])
    full = [x.clone() for x in given]
    full[2][:] = True
    assert not torch.allclose(prior(*given)[there], prior(*full)[there])


@pytest.mark.parametrize(("column", "argument"), [(0, 4), (1, 5), (2, 6)])
def test_a_condition_counts_unless_it_is_hidden(prior, column, argument):
    one, other = told(), told()
    other[argument] = (other[argument] + 1) % 3 if column == 0 else -other[argument]
    assert not torch.allclose(prior(*one), prior(*other), atol=1e-4)
    one[3][:, column] = other[3][:, column] = False
    assert torch.equal(prior(*one), prior(*other))


def test_a_grid_of_another_size_and_a_single_cell_go_through_the_same_weights(prior):
    assert prior(*told(1, 1)).shape == (2, 1, 1, 5)
    assert prior(*told(9, 2)).shape == (2, 9, 2, 5)


def test_it_begins_by_predicting_the_mean_embedding():
    fresh = build_prior("dit-tiny", 5, num_classes=3, text_dim=4, numeric_dim=2)
    assert torch.equal(fresh(*told()), torch.zeros(2, 3, 4, 5))


def test_computing_activations_again_gives_the_same_gradients(prior):
    def gradients() -> list[torch.Tensor]:
        prior.zero_grad()
        prior(*told()).square().mean().backward()
        return [p.grad.clone() for p in prior.parameters() if p.grad is not None]

    plain = gradients()
    prior.set_grad_checkpointing(True)
    again = gradients()
    prior.set_grad_checkpointing(False)
    assert all(map(torch.equal, plain, again))


def test_dit_b_has_the_published_size():
    with torch.device("meta"):
        network = build_prior("dit-b", 768, num_classes=2)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(160e6, rel=0.05)
    assert (len(network.blocks), network.config["width"], network.config["heads"]) == (12, 768, 12)
