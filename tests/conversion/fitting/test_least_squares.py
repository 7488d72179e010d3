"""Least squares of one Ghost conv: folds, line search, means, and the fit itself."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.least_squares import (
    FitProblem,
    fit_ghost,
    line_search,
    mean_gap,
    num_held,
    num_samples_for,
    shared_mean,
)


@pytest.mark.parametrize(('number', 'held'), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 1), (64, 12)])
def test_some_images_are_held_back(number, held):
    assert num_held(number, 5) == held


def problem(number, height):
    x = torch.randn(number, 3, height, 6)
    return FitProblem(x, torch.randn(number, 8, height, 6), torch.ones(8), True)


def test_rows_of_a_single_image_are_held_back():
    ((seen, held),) = problem(1, 8).folds()
    assert (seen.positions, held.positions) == (36, 12)
    assert problem(1, 3).folds() == []


@pytest.mark.parametrize(('number', 'folds', 'held'), [(2, 2, 1), (8, 4, 2), (20, 1, 4)])
def test_few_images_are_held_back_in_turn(number, folds, held):
    whole = problem(number, 1)
    found = whole.folds()
    assert len(found) == folds
    assert all((len(a.x), len(b.x)) == (number - held, held) for a, b in found)
    if folds > 1:  # each image once
        assert torch.equal(torch.cat([b.x for _, b in found]), whole.x)


def test_means_are_removed_where_they_are_free():
    free = problem(4, 3)
    assert free.centred(free.y).mean((0, 2, 3)).abs().max() < 1e-6
    bound = FitProblem(free.x, free.y, free.used, free=False)
    assert bound.centred(free.y) is free.y


@pytest.mark.parametrize(('slope', 'step'), [(-1.0, 0.0), (0.5, 0.5), (3.0, 1.0)])
def test_a_step_goes_as_far_as_held_back_positions_gain(slope, step):
    found = line_search(9600, torch.tensor([slope]), torch.ones(1))
    torch.testing.assert_close(found, torch.tensor([step], dtype=torch.float64))


def test_few_positions_share_one_step():
    slope, curvature = torch.tensor([0.0, 1.0]), torch.ones(2)
    few, many = (line_search(positions, slope, curvature) for positions in (6, 24000))
    assert (few[1] - few[0]) < 0.5 < 0.99 < (many[1] - many[0])


def test_estimates_that_agree_keep_their_mean():
    assert shared_mean(torch.ones(4, 3)).tolist() == [1, 1, 1]


def test_estimates_that_disagree_count_less():
    means = torch.tensor([[1.0], [-1.0], [3.0], [-2.0]])
    assert 0 <= shared_mean(means).item() < means.mean().item()
    assert shared_mean(torch.ones(1, 3)).tolist() == [0, 0, 0]  # nothing to compare with


def test_rows_stand_for_images_where_there_is_one():
    constant = torch.full((1, 2, 8, 3), 5.0)
    torch.testing.assert_close(mean_gap(constant), torch.full((2,), 5.0, dtype=torch.float64))
    noise = torch.randn(1, 2, 8, 3)
    assert mean_gap(noise).abs().max() < noise.mean((0, 2, 3)).abs().max() + 1e-9


def ghost(seed, **options):
    torch.manual_seed(seed)
    return gp.GhostConv2d(4, 8, 3, padding=1, permuted=True, **options).double().eval()


@pytest.mark.parametrize('bias', [True, False])
def test_a_ghost_learns_another_ghost(bias):
    student, teacher = ghost(0, bias=bias), ghost(1, bias=bias)
    with torch.no_grad():  # linear in one part, so one solve of each part suffices
        student.primary_conv.weight.copy_(teacher.primary_conv.weight)
        student.cheap_operation.weight.mul_(1.5)
        x = torch.randn(20, 4, 8, 8, dtype=torch.float64)
        wanted = teacher(x)
        before = (student(x) - wanted).square().sum()
        found = fit_ghost(student, x, wanted, free=False)
        after = (student(x) - wanted).square().sum()
    assert after < 0.02 * before and found.error < 0.02
    assert bias or not found.shift.any()


@pytest.mark.parametrize('number', [1, 3, 20])
def test_a_fit_never_ends_worse(number):
    student = ghost(0, bias=False)
    with torch.no_grad():
        x = torch.randn(number, 4, 8, 8, dtype=torch.float64)
        wanted = 0.1 * torch.randn(number, 8, 8, 8, dtype=torch.float64)  # mere noise
        before = (student(x) - wanted).square().mean()
        fit_ghost(student, x, wanted, free=False)
        assert (student(x) - wanted).square().mean() <= before


def test_a_free_mean_becomes_a_shift():
    student = ghost(0, bias=False)
    with torch.no_grad():
        x = torch.randn(20, 4, 8, 8, dtype=torch.float64)
        offset = torch.arange(8.0, dtype=torch.float64)
        found = fit_ghost(student, x, student(x) + offset[:, None, None], free=True)
    torch.testing.assert_close(found.shift, offset, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    'settings', [{'ratio': 1}, {'dw_size': 1, 'group_size': 2}, {'dw_size': 3}]
)
def test_channels_keep_more_of_their_variance(settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    x = torch.randn(48, 4, 9, 9)
    wanted = conv(x).detach()
    noisy = x + 0.7 * torch.randn_like(x)
    states = {}
    for match in (False, True):
        torch.manual_seed(0)
        ghost = gp.GhostConv2d(4, 8, 3, padding=1, bias=False, permuted=True, **settings)
        with torch.no_grad():
            ghost.primary_conv.weight.copy_(conv.weight[: ghost.primary])
        fit_ghost(ghost, noisy, wanted, True, match)
        states[match] = ghost(noisy).var((0, 2, 3)) / wanted.var((0, 2, 3))
    plain, matched = (share.detach().clamp(max=1) for share in states.values())
    assert (matched >= plain - 1e-4).all()
    # 0.7 of the way in logarithms, but no channel by more than 1.5.
    expected = torch.minimum(plain**0.3, plain * 1.5**2)
    torch.testing.assert_close(matched, expected, rtol=1e-3, atol=0)


def test_large_kernels_ask_for_more_images():
    x = torch.zeros(1, 64, 2, 2)
    small, large = (gp.GhostConv2d(64, 8, k, permuted=True) for k in (1, 3))
    y = torch.zeros(1, 8, 2, 2)
    assert num_samples_for(small, x, y) == 2048
    assert num_samples_for(large, x, y) == 18432
    assert num_samples_for(large, torch.zeros(1, 64, 512, 512), y) == 1  # memory


def test_ridge_pulls_a_fit_of_few_positions_to_the_first_weights():
    moved = []
    for number in (1, 20):
        student = ghost(0, bias=False)
        first = student.primary_conv.weight.clone()
        with torch.no_grad():
            x = torch.randn(number, 4, 4, 4, dtype=torch.float64)
            target = nn.functional.conv2d(
                x, 2 * ghost(1, bias=False).primary_conv.weight, None, 1, 1
            )
            fit_ghost(student, x, target.repeat(1, 2, 1, 1), free=False)
        moved.append((student.primary_conv.weight - first).norm().item())
    assert moved[0] < moved[1]
