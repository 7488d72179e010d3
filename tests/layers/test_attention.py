import pytest
import torch
from torch import nn

from ghost_plugin.layers.attention import DFCAttention, SqueezeExcite, half_size


def test_gates_of_squeeze_excite_start_near_one_half():
    x = torch.randn(64, 16, 4, 4)
    share = SqueezeExcite(16, 4)(x) / x
    assert (share.flatten(2).std(2) < 1e-3).all()  # one gate per channel
    assert 0.4 < share.mean() < 0.6


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (6, 5), (8, 8)])
def test_attention_keeps_any_size(size):
    attention = DFCAttention(4, 6, nn.BatchNorm2d)
    features = torch.randn(2, 6, *size)
    out = attention(torch.randn(2, 4, *size), features)
    assert out.shape == features.shape
    assert (out.abs() <= features.abs()).all()  # gates lie within 0..1


def test_half_size_averages_pixels_in_fours():
    x = torch.arange(8.0).view(1, 1, 2, 4)
    assert half_size(x).tolist() == [[[[2.5, 4.5]]]]
