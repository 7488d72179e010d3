import pytest
import torch
from torch import nn

from ghost_plugin.layers.common import (
    DropPath,
    activation,
    check_module,
    check_positive,
    draw_weights,
    same_padding,
    second_moment,
)


def test_activations_work_in_place_where_they_can():
    assert activation(nn.ReLU).inplace
    assert isinstance(activation(nn.GELU), nn.GELU)


@pytest.mark.parametrize(
    ('kernel', 'dilation', 'padding'), [(3, 1, (1, 1)), ((1, 5), 1, (0, 2)), (3, 4, (4, 4))]
)
def test_padding_keeps_the_size(kernel, dilation, padding):
    assert same_padding(kernel, dilation) == padding
    conv = nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation)
    assert conv(torch.ones(1, 1, 9, 9)).shape == (1, 1, 9, 9)


def test_bad_values_are_named():
    with pytest.raises(TypeError, match='groups must be an integer'):
        check_positive(groups=True)
    with pytest.raises(ValueError, match='stride must be 1 or more, got 0'):
        check_positive(stride=0)
    with pytest.raises(TypeError, match="got 'resnet18'"):
        check_module('resnet18')


def test_drawn_weights_give_the_variance():
    conv = nn.Conv2d(8, 64, 3, padding=1)
    draw_weights(conv, moment=4.0, variance=0.25)
    assert not conv.bias.any()
    out = conv(2 * torch.randn(8, 8, 16, 16))[..., 1:-1, 1:-1]
    assert 0.22 < out.var() < 0.28


def test_weights_can_be_drawn_while_transformers_skips_the_drawing(monkeypatch):
    monkeypatch.setattr(nn.init, 'normal_', lambda weight: None)
    conv = nn.Conv2d(2, 4, 1)
    draw_weights(conv)
    assert torch.allclose(conv.weight.square().sum((1, 2, 3)), torch.ones(4))


def test_second_moments():
    assert second_moment(nn.Identity(), 2.0) == pytest.approx(2.0, rel=0.05)
    assert second_moment(nn.ReLU(), 2.0) == pytest.approx(1.0, rel=0.05)
    assert second_moment(nn.ReLU(), 0.0, shortcut=3.0) == pytest.approx(3.0, rel=0.05)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 2, 1, 1)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out[:, 0], out[:, 1])
    assert 0.95 < out.mean() < 1.05
    assert drop.eval()(x) is x
