"""Constant forms of channel permutations."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.permutations import with_constant_permutations


@pytest.mark.parametrize('group_size', [1, 2, 'all'])
@pytest.mark.parametrize('convolutions', [True, False])
def test_constants_compute_the_same(convolutions, group_size):
    layer = gp.GhostConv2d(8, 12, 1, permuted=True, group_size=group_size).eval()
    layer.order = torch.arange(12).flip(0)
    x = torch.randn(2, 8, 5, 5)
    made = with_constant_permutations(layer, convolutions)
    torch.testing.assert_close(made(x), layer(x))
    # Ghosts of several primary channels are never expanded; a 1x1 convolution follows them.
    expanded = convolutions and group_size == 1
    assert made is not layer and (made.order is None) == expanded


def test_without_permutations_nothing_is_copied():
    model = nn.Sequential(gp.GhostModule(3, 8))
    assert with_constant_permutations(model, True) is model
