"""Constant forms of channel permutations."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.permutations import with_constant_permutations


@pytest.mark.parametrize('convolutions', [True, False])
def test_constants_compute_the_same(convolutions):
    layer = gp.GhostConv2d(8, 12, 1, permuted=True).eval()
    layer.order = torch.arange(12).flip(0)
    x = torch.randn(2, 8, 5, 5)
    made = with_constant_permutations(layer, convolutions)
    torch.testing.assert_close(made(x), layer(x))
    assert made is not layer and (made.order is None) == convolutions


def test_without_permutations_nothing_is_copied():
    model = nn.Sequential(gp.GhostModule(3, 8))
    assert with_constant_permutations(model, True) is model
