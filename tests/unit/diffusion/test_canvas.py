"""Interpolation of embeddings, exact sums of windows, noise levels of a canvas's steps."""

import math

import numpy as np
import pytest
import torch

from hdtrain.config.synthesis import SolverConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.canvas import add_windows, canvas_steps, coverage, mean_of, profile, window_conditions
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.diffusion.slerp import slerp
from hdtrain.diffusion.solvers import make_solver
from hdtrain.diffusion.windows import window_starts
from hdtrain.errors import HdtrainError


def test_slerp_goes_round_the_sphere_at_an_even_pace():
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    between = slerp(a.expand(5, 3), b.expand(5, 3), torch.linspace(0, 1, 5))
    angles = [math.atan2(y, x) for x, y, _ in between.tolist()]
    assert angles == pytest.approx([0, math.pi / 8, math.pi / 4, 3 * math.pi / 8, math.pi / 2], abs=1e-6)
    assert between.norm(dim=1).tolist() == pytest.approx([2.0] * 5)


@pytest.mark.parametrize("other", [[1.0, 1e-3], [-1.0, 1e-3], [1.0, 0.0], [3.0, 0.0]])
def test_slerp_of_nearly_parallel_embeddings_is_a_straight_line(other):
    a, b = torch.tensor([1.0, 0.0]), torch.tensor(other)
    assert torch.allclose(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_windows_reach_both_ends_and_the_coverage_counts_them():
    assert window_starts(256, 64, 16) == list(range(0, 193, 16))
    assert len(window_starts(256, 64, 16)) == 13
    assert window_starts(20, 8, 5) == [0, 5, 10, 12]
    counted = coverage(window_starts(20, 8, 5), profile("uniform", 8), 20)
    assert counted.tolist() == [sum(s <= x < s + 8 for s in (0, 5, 10, 12)) for x in range(20)]


def test_a_window_on_a_cell_has_its_embedding_and_the_last_row_and_column_are_replicated():
    grid = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4, 5)))
    places = torch.tensor([(8 * r, 8 * c) for r in range(3) for c in range(4)])
    assert torch.allclose(window_conditions(grid, places, 8), grid.reshape(12, 5))
    beyond = window_conditions(grid, torch.tensor([(16, 4), (20, 24)]), 8)
    assert torch.allclose(beyond[0], slerp(grid[2, 0], grid[2, 1], 0.5))
    assert torch.allclose(beyond[1], grid[2, 3])
    inner = window_conditions(grid, torch.tensor([(2, 6)]), 8)[0]
    upper, lower = slerp(grid[0, 0], grid[0, 1], 0.75), slerp(grid[1, 0], grid[1, 1], 0.75)
    assert torch.allclose(inner, slerp(upper, lower, 0.25))


def test_each_token_of_a_window_is_interpolated_as_if_it_were_alone():
    grid = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4, 2, 5)))
    places = torch.tensor([(0, 0), (2, 6), (16, 4), (20, 24), (9, 13)])
    both = window_conditions(grid, places, 8)
    assert both.shape == (5, 2, 5)
    for token in (0, 1):
        assert torch.equal(both[:, token], window_conditions(grid[:, :, token].contiguous(), places, 8))


def test_windows_sum_to_the_same_bits_in_any_order_where_floats_do_not():
    windows = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 100
    places = torch.zeros(16, 2, dtype=torch.int64)
    sums, plain = [], []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(16).tolist()
        total = torch.zeros(2, 4, 4, dtype=torch.int64)
        for number in order:
            add_windows(total, windows[number : number + 1], places[:1], profile("gaussian", 4))
        sums.append(total)
        plain.append(sum(windows[number] for number in order))
    assert all(torch.equal(sums[0], other) for other in sums)
    assert not all(torch.equal(plain[0], other) for other in plain)
    rows = coverage([0] * 16, profile("gaussian", 4), 4)
    weight = profile("gaussian", 4)
    mean = mean_of(sums[0], rows, weight)
    assert (mean - windows.double().mean(0)).abs().max() < 1e-8


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-4e4, "40000")])
def test_values_that_a_sum_could_not_hold_are_refused(value, said):
    windows = torch.zeros(1, 1, 2, 2)
    windows[0, 0, 1, 0] = value
    with pytest.raises(HdtrainError, match=f"the value {said}.*gives nonsense"):
        add_windows(
            torch.zeros(1, 2, 2, dtype=torch.int64), windows, torch.zeros(1, 2, dtype=torch.int64), torch.ones(2)
        )


def test_more_windows_over_one_place_than_can_be_summed_are_refused():
    with pytest.raises(HdtrainError, match="257² windows over one place, at most 65536"):
        coverage(range(257), torch.ones(300, dtype=torch.float64), 600)


@pytest.mark.parametrize(("eta", "zero_snr"), [(0.0, False), (0.6, False), (1.0, False), (0.0, True), (0.6, True)])
def test_a_step_of_the_canvas_is_that_of_sample(eta, zero_snr):
    schedule = NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=zero_snr))
    draws = torch.randn(12, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    solver = make_solver(SolverConfig(steps=10, eta=eta), schedule, "sample")
    z = expected = draws[0]
    z0 = draws[1] / 3
    for number, step in enumerate(canvas_steps(schedule, 10, eta)):
        expected = solver.step(number, expected, lambda _: z0, None, lambda n: draws[2 + n])
        z = step.after(z[0], z0[0], draws[2 + number][0])[None]
        assert step.timestep == solver.timesteps[number]
        assert torch.allclose(z, expected, atol=1e-5)


def test_a_step_that_is_all_noise_is_finite():
    step = canvas_steps(NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=True)), 10, 1.0)[0]
    assert step.alpha_bar == 0
    assert step.after(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.ones(1, 2, 2)).isfinite().all()


def test_the_released_noise_is_far_less_than_that_of_eta_1():
    schedule = NoiseSchedule(NoiseScheduleConfig())
    released, full = (canvas_steps(schedule, 50, noise) for noise in ("released_code", 1.0))
    alphas = schedule.alphas_cumprod.tolist()
    step = released[20]
    beta = 1 - alphas[step.timestep] / alphas[step.timestep - 1]
    assert step.sigma**2 == pytest.approx(beta * (1 - step.alpha_bar_after) / (1 - step.alpha_bar))
    assert all(0 < less.sigma < more.sigma / 3 for less, more in zip(released[:-1], full[:-1], strict=True))
