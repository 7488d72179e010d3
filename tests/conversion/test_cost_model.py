"""Costs of convs and their Ghosts, as the modules themselves count."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.cost_model import ConvSpec


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('cheap', ['depthwise', 'shift', 'linear'])
@pytest.mark.parametrize('ratio', [1.25, 2, 3])
def test_costs_are_those_of_the_modules(bias, groups, cheap, ratio):
    settings = {'ratio': ratio, 'dw_size': 3, 'cheap': cheap}
    options = {'padding': 1, 'groups': groups, 'bias': bias}
    conv = nn.Conv2d(8, 16, 3, **options)
    ghost = gp.GhostConv2d(8, 16, 3, **options, **settings, permuted=True)
    spec = ConvSpec.from_conv(conv, 25)
    x = torch.zeros(1, 8, 5, 5)
    for module, cost in ((conv, spec.dense()), (ghost, spec.ghost(settings))):
        counted = gp.count(module, x)
        assert cost == (counted.params, counted.macs)


@pytest.mark.parametrize('out_channels', [15, 16, 37])
@pytest.mark.parametrize('group_size', [1, 2, 4, 'all'])
@pytest.mark.parametrize('dw_size', [1, 3])
@pytest.mark.parametrize('ratio', [1.0625, 1.25, 2, 3])
def test_costs_of_grouped_ghosts_are_those_of_the_modules(out_channels, group_size, dw_size, ratio):
    settings = {'ratio': ratio, 'dw_size': dw_size, 'cheap': 'depthwise', 'group_size': group_size}
    for bias in (False, True):
        ghost = gp.GhostConv2d(8, out_channels, 1, bias=bias, **settings, permuted=True)
        spec = ConvSpec(8, out_channels, (1, 1), 1, bias, 25)
        counted = gp.count(ghost, torch.zeros(1, 8, 5, 5))
        assert spec.ghost(settings) == (counted.params, counted.macs)


@pytest.mark.parametrize(
    ('conv', 'kind', 'bias'),
    [
        (nn.Conv2d(4, 6, (1, 3)), '4 to 6, 1x3', True),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), '4 to 8, 3x3 groups 2', False),
        (nn.Conv3d(4, 6, 3), '4 to 6, 3x3x3', True),
    ],
)
def test_sizes_are_read_from_any_conv(conv, kind, bias):
    spec = ConvSpec.from_conv(conv, 1)
    assert (spec.kind, spec.bias) == (kind, bias)


def test_sizes_of_other_libraries_may_be_one_number():
    class Other(nn.Module):
        in_channels, out_channels, kernel_size = 3, 4, 5

        def bias(self):
            return None

    assert ConvSpec.from_conv(Other(), 1) == ConvSpec(3, 4, (5, 5), 1, False, 1)


def test_a_ghost_saves_unless_its_cheap_kernels_cost_as_much():
    settings = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}
    assert ConvSpec(16, 16, (3, 3), 1, False, 0).ghost_saves(settings)  # by weights, not pixels
    assert not ConvSpec(16, 16, (3, 3), 16, False, 9).ghost_saves(settings)
    assert not ConvSpec(16, 1, (3, 3), 1, False, 9).ghost_saves(settings)  # no ghosts


@pytest.mark.parametrize(
    ('groups', 'ratio', 'group_size', 'code'),
    [
        (1, 3, 1, ''),
        (2, 2, 1, ''),
        (4, 2, 1, 'groups'),  # they do not divide the primary channels
        (1, 2, 10, ''),
        (1, 2, 11, 'group_size'),
        (2, 2, 2, 'group_size'),
    ],
)
def test_settings_that_a_conv_does_not_allow_have_a_reason(groups, ratio, group_size, code):
    settings = {'ratio': ratio, 'dw_size': 3, 'cheap': 'depthwise', 'group_size': group_size}
    assert ConvSpec(20, 20, (3, 3), groups, False, 9).settings_blocker(settings) == code
