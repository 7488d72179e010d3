"""First weights of Ghosts."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.channel_statistics import moments_from_weights
from ghost_plugin.conversion.fitting.initialization import filter_size, initialize_ghost


def pair(groups=1, **options):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    ghost = gp.GhostConv2d(4, 8, 3, padding=1, groups=groups, permuted=True, **options)
    return conv, ghost


@pytest.mark.parametrize(
    ('options', 'size'), [({'dw_size': 5}, 5), ({'cheap': 'shift'}, 3), ({'cheap': 'linear'}, 1)]
)
def test_size_of_the_filters(options, size):
    assert filter_size(pair(**options)[1]) == size


@pytest.mark.parametrize('groups', [1, 2])
def test_a_redundant_conv_loses_nothing(groups, redundant):
    conv, ghost = pair(groups)
    redundant(conv)
    error = initialize_ghost(conv, ghost, moments_from_weights(conv, 3))
    assert error < 1e-6
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ghost(x)[..., 1:-1, 1:-1], conv(x)[..., 1:-1, 1:-1])


def test_primary_kernels_are_copies_at_their_outputs():
    conv, ghost = pair()
    initialize_ghost(conv, ghost, moments_from_weights(conv, 3))
    outputs = [int((ghost.order == index).nonzero()) for index in range(4)]
    assert torch.equal(ghost.primary_conv.weight, conv.weight[outputs])
    assert torch.equal(ghost.primary_conv.bias, conv.bias[outputs])
    assert sorted(ghost.order.tolist()) == [*range(8)]


def test_the_error_is_that_of_white_input():
    conv, ghost = pair(dw_size=1)
    error = initialize_ghost(conv, ghost, moments_from_weights(conv, 1))
    x = torch.randn(50, 4, 20, 20)
    with torch.no_grad():
        wanted, bias = conv(x), conv.bias[:, None, None]
        lost = (ghost(x) - wanted).square().mean() / (wanted - bias).square().mean()
    assert error == pytest.approx(lost.item(), rel=0.1)


def test_ghosts_made_by_shifts_count_as_lost():
    conv, ghost = pair(cheap='shift')
    with torch.no_grad():
        conv.weight.copy_(conv.weight / conv.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    assert initialize_ghost(conv, ghost, moments_from_weights(conv, 3)) == pytest.approx(0.5)


def test_a_ghost_without_ghosts_is_the_conv():
    conv, ghost = pair(ratio=1)
    assert initialize_ghost(conv, ghost, moments_from_weights(conv, 3)) == 0
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(ghost(x), conv(x))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('ratio, group_size', [(1.25, 4), (2, 4), (2, 8), (1.5, 'all')])
def test_planted_mixtures_are_found(ratio, group_size, bias, dtype, tolerance):
    torch.manual_seed(0)
    options = {'ratio': ratio, 'group_size': group_size, 'dw_size': 1, 'bias': bias}
    planted = gp.GhostConv2d(12, 40, 3, padding=1, **options).to(dtype)
    conv = nn.Conv2d(12, 40, 3, padding=1, bias=bias).to(dtype)
    size, number = planted.group_size, planted.num_ghosted // planted.group_size
    with torch.no_grad():
        for parameter in planted.parameters():
            parameter.normal_()
        primary = planted.primary_conv.weight.flatten(1)
        mixed = planted.cheap_operation.weight.view(number, -1, size)
        ghosts = mixed @ primary[: planted.num_ghosted].view(number, size, -1)
        kernels = torch.cat((primary, ghosts.flatten(0, 1)))[:40]
        conv.weight.copy_(kernels[torch.randperm(40)].view_as(conv.weight))
    ghost = gp.GhostConv2d(12, 40, 3, padding=1, permuted=True, **options).to(dtype)
    error = initialize_ghost(conv, ghost, moments_from_weights(conv, 1))
    x = torch.randn(4, 12, 9, 9, dtype=dtype)
    with torch.no_grad():
        want = conv(x)
        assert (ghost(x) - want).norm() < tolerance * want.norm()
    assert error < 1e-6
