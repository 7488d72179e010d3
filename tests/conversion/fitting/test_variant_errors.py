"""Errors of several Ghosts of one conv are those that their first weights have."""

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.channel_statistics import (
    ChannelMomentsCollector,
    moments_from_weights,
)
from ghost_plugin.conversion.fitting.initialization import filter_size, initialize_ghost
from ghost_plugin.conversion.fitting.variant_errors import VariantErrors
from ghost_plugin.conversion.surgery import build_ghost
from ghost_plugin.layers.ghost import ghost_layout


def of_images(conv, size):
    collector = ChannelMomentsCollector(conv, size)
    collector.add(conv(torch.randn(8, conv.in_channels, 9, 9)))
    return collector.moments()


@pytest.mark.parametrize('moments', [moments_from_weights, of_images])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('cheap', ['depthwise', 'linear', 'shift'])
def test_errors_of_one_primary_channel_are_equal(moments, groups, cheap):
    conv = nn.Conv2d(12, 48, 3, padding=1, groups=groups)
    settings = {'dw_size': 3, 'cheap': cheap}
    size = filter_size(build_ghost(conv, {'ratio': 2, **settings}))
    with torch.no_grad():
        found = moments(conv, size)
        trials = VariantErrors(found, groups)
        for ratio in (1.125, 1.5, 2, 3, 4):
            ghost = build_ghost(conv, {'ratio': ratio, **settings})
            layout = ghost_layout(48, ratio, groups)
            error = trials.error(layout, fitted=cheap != 'shift')
            assert error == initialize_ghost(conv, ghost, found) > 0


@pytest.mark.parametrize('moments', [moments_from_weights, of_images])
@pytest.mark.parametrize('inputs', [4, 24])
def test_errors_of_mixed_ghosts_are_equal_but_for_rounding(moments, inputs):
    conv = nn.Conv2d(inputs, 48, 1)
    with torch.no_grad():
        conv.weight.mul_(torch.logspace(0, -1, 48).view(-1, 1, 1, 1))
        found = moments(conv, 1)
        trials = VariantErrors(found, 1)
        for ratio in (1.125, 1.5, 2):
            for size in (2, 4, 'all'):
                settings = {'ratio': ratio, 'dw_size': 1, 'cheap': 'depthwise', 'group_size': size}
                error = trials.error(ghost_layout(48, ratio, group_size=size))
                want = initialize_ghost(conv, build_ghost(conv, settings), found)
                assert error == pytest.approx(want, rel=1e-4, abs=1e-6)
