"""Second moments of a conv's output, against their definition."""

import itertools

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.channel_statistics import (
    ChannelMoments,
    ChannelMomentsCollector,
    moments_from_weights,
    pair_filters,
    pairwise_errors,
    shifted,
    solve,
)


def moments(maps, size=3):
    """Of (N, C, H, W), by the definition, away from any prior."""
    terms = torch.stack(list(shifted(maps, size, 'zeros', maps.numel())), dim=1).double()
    here = terms[:, size**2 // 2]
    number = here.shape[1]
    own = terms @ terms.transpose(1, 2) / number
    cross = torch.einsum('ptn,jn->pjt', terms, here) / number
    return ChannelMoments(own, cross, here.square().mean(1)), terms, here


def test_taps_see_shifted_pixels():
    maps = torch.arange(9.0).view(1, 1, 3, 3)
    taps = list(shifted(maps, 3, 'zeros', 1000))
    assert taps[4].flatten().tolist() == [*range(9)]
    assert taps[0].flatten().tolist() == [0, 0, 0, 0, 0, 1, 0, 3, 4]  # up and left
    rows = list(shifted(maps, 3, 'zeros', 1000, slice(1, 3)))
    assert rows[4].flatten().tolist() == [3, 4, 5, 6, 7, 8]
    assert rows[1].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_positions_are_sampled_evenly():
    maps = torch.arange(100.0).view(1, 1, 10, 10)
    assert next(shifted(maps, 1, 'zeros', 10)).flatten().tolist() == [*range(0, 100, 11)]


def test_solve_is_least_squares():
    terms, targets = torch.randn(50, 4), torch.randn(50, 3)
    want = torch.linalg.lstsq(terms.double(), targets.double()).solution
    torch.testing.assert_close(solve(terms.T @ terms, terms.T @ targets), want)


def test_solve_takes_singular_systems():
    terms = torch.randn(50, 2).repeat(1, 2)
    targets = terms[:, :1]
    found = solve(terms.T @ terms, terms.T @ targets)
    torch.testing.assert_close(terms.double() @ found, targets.double(), atol=1e-4, rtol=1e-4)
    assert not solve(torch.zeros(3, 3), torch.zeros(3, 1)).any()


def test_damping_is_a_ridge():
    terms, targets = torch.randn(50, 4).double(), torch.randn(50, 1).double()
    own = terms.T @ terms
    ridge = 0.5 * own.diagonal().mean() * torch.eye(4)
    want = torch.linalg.solve(own + ridge, terms.T @ targets)
    torch.testing.assert_close(solve(own, terms.T @ targets, 0.5), want)


def test_pairwise_errors_are_those_of_the_best_filters():
    found, terms, here = moments(torch.randn(2, 4, 5, 5))
    errors = pairwise_errors(found)
    for p, j in itertools.product(range(4), repeat=2):
        best = torch.linalg.lstsq(terms[p].T, here[j][:, None]).solution
        left = (here[j] - (terms[p].T @ best)[:, 0]).square().sum() / here[j].square().sum()
        torch.testing.assert_close(errors[p, j], left, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(
            pair_filters(found, [p], [j])[0], best[:, 0], atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize('options', [{}, {'stride': 2}, {'dilation': 2}, {'groups': 2}])
def test_moments_from_weights_are_those_of_white_input(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, bias=False, **options)
    with torch.no_grad():
        maps = conv(torch.randn(40, 4, 41, 41))
    inside = maps[:, :, 1:-1, 1:-1]
    rows, columns = maps.shape[2] - 2, maps.shape[3] - 2
    white = moments_from_weights(conv, 3)
    for p, j, down, right in itertools.product(range(4), range(4), range(3), range(3)):
        if conv.groups == 2 and (p < 2) != (j < 2):
            continue  # the groups' inputs are the same for weights only
        moved = maps[:, p, down : down + rows, right : right + columns]
        found = (moved * inside[:, j]).mean()
        torch.testing.assert_close(white.cross[p, j, 3 * down + right], found, atol=0.03, rtol=0.1)
    torch.testing.assert_close(white.energy, maps.square().mean((0, 2, 3)), atol=0.03, rtol=0.1)
    torch.testing.assert_close(white.own[:, 4, 4], white.energy)
    torch.testing.assert_close(white.own[:, 4], white.cross.diagonal().T.reshape(4, 9))


def test_collected_moments_are_means_over_batches():
    conv = nn.Conv2d(2, 3, 1, bias=False).double()
    maps = torch.randn(400, 3, 16, 16, dtype=torch.float64)  # so many that the prior is out
    collector = ChannelMomentsCollector(conv, 3, 2)
    collector.share = maps.numel()
    for part in maps.chunk(2):
        collector.add(part)
    assert collector.positions == 400 * 256
    found, want = collector.moments(), moments(maps)[0]
    for name in ('own', 'cross', 'energy'):
        torch.testing.assert_close(getattr(found, name), getattr(want, name))


def test_a_bias_adds_a_constant_term():
    conv = nn.Conv2d(2, 3, 1).double()
    maps = torch.randn(400, 3, 16, 16, dtype=torch.float64) + 5
    collector = ChannelMomentsCollector(conv, 1)
    collector.share = maps.numel()
    collector.add(maps)
    found = collector.moments()
    assert found.constant and found.own.shape == (3, 2, 2)
    torch.testing.assert_close(found.energy, maps.var((0, 2, 3), correction=0))
    torch.testing.assert_close(found.own[:, 0, 1], maps.mean((0, 2, 3)))
    independent = pairwise_errors(found).fill_diagonal_(1)
    assert independent.min() > 0.99  # the constant explains means only


def test_few_positions_are_blended_with_white_input():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 1, bias=False)
    white = moments_from_weights(conv, 1)
    correlations = []
    for number in (1, 100_000):
        collector = ChannelMomentsCollector(conv, 1)
        collector.share = 10**6
        collector.add(torch.ones(number, 3, 1, 1))  # all channels alike
        found = collector.moments()
        correlations.append((found.cross[0, 1, 0] / found.energy[:2].prod().sqrt()).item())
    prior = (white.cross[0, 1, 0] / white.energy[:2].prod().sqrt()).item()
    assert abs(correlations[0] - prior) < 0.1 and correlations[1] == pytest.approx(1)
