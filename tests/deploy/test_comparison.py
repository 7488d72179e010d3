"""Differences of outputs, and the tolerance of float32."""

import pytest
import torch
from torch import nn

from ghost_plugin.deploy.comparison import Difference, differences, float32_tolerance
from ghost_plugin.deploy.flat_io import TensorIO


class Steep(nn.Module):
    """Loses all but a few digits in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(1e4))

    def forward(self, x):
        return (x + self.large) * 3 - (self.large * 3 + x)


def test_where_float32_loses_digits_more_is_allowed():
    net, x = TensorIO(Steep(), torch.randn(1, 3)), torch.randn(1, 3)
    assert 1e-4 < float32_tolerance(net, [x], 1e-4) < 1e-1
    plain = TensorIO(nn.Linear(3, 2), x)
    assert float32_tolerance(plain, [x], 1e-4) == 1e-4
    assert plain.model.weight.dtype == torch.float32


def test_differences_see_shapes_and_nans():
    one = torch.ones(2, 3)
    assert differences({'a': one}, {'a': one}).absolute == 0
    assert differences(one, one[:1]).relative == float('inf')
    assert differences(one * float('nan'), one).typical == float('inf')
    assert differences(one + 0.5, 2 * one).relative == 0.25
    with pytest.raises(TypeError, match=r'outputs must be tensors.* got dict'):
        differences({'a': 1}, {'a': 1})


def test_the_worse_of_each_figure_counts():
    assert Difference(1, 2, 3) | Difference(3, 2, 1) == Difference(3, 2, 3)
